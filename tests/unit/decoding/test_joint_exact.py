"""Exact joint decoding against brute force over all blocks."""

import itertools
import math

import numpy as np
import pytest
import torch
from tests.oracles import Law, Path, enumerate_blocks
from tests.table_models import Run, random_table, table_law

from mtad.decoding.joint_exact import BlockSearch, JointExactDecoder
from mtad.errors import SearchBudgetError
from mtad.models.table import TableRunner
from mtad.structures import RowSettings

PROMPTS = [[1], [0, 2, 1], [2, 2]]


def best_block(law: Law, gamma: int, eos: frozenset[int]) -> tuple[Path, float]:
    return max(enumerate_blocks(law, gamma, eos), key=lambda block: block[1])


def search(law: Law, gamma: int, eos: frozenset[int], budget: int = 10**6) -> BlockSearch:
    found = BlockSearch(gamma, eos, budget)
    while (prefix := found.next_prefix()) is not None:
        found.expand(prefix, torch.from_numpy(law(prefix)))
    return found


@pytest.mark.parametrize("vocab", [2, 4, 8])
@pytest.mark.parametrize("gamma", [1, 2, 4])
@pytest.mark.parametrize("eos", [frozenset[int](), frozenset({1}), frozenset({0, 1})])
def test_the_search_finds_the_optimum(vocab: int, gamma: int, eos: frozenset[int]) -> None:
    for seed in range(10 if vocab**gamma < 1000 else 2):
        law = table_law(random_table(seed, vocab, 3, scale=0.7), [1])
        found = search(law, gamma, eos)
        block, joint = best_block(law, gamma, eos)
        assert found.block == block
        assert sum(found.log_probs) == pytest.approx(joint)
        assert len(found.log_probs) == len(block)
        # Uniform-cost search expands nothing that is less likely than the optimum.
        worth = [
            path
            for length in range(gamma)
            for path, prefix in enumerate_blocks(law, length)
            if prefix > joint and not set(path) & eos
        ]
        assert found.num_expanded <= len(worth) + 1


def test_impossible_tokens_are_never_searched() -> None:
    table = torch.full((3, 3), -math.inf, dtype=torch.float64)
    table[:, 2] = 0.0
    found = search(table_law(table, [0]), 4, frozenset())
    assert found.block == (2, 2, 2, 2)
    assert found.num_expanded == 4


@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("eos", [frozenset[int](), frozenset({3})])
def test_answers_are_chains_of_best_blocks(gamma: int, eos: frozenset[int]) -> None:
    target = random_table(5, 4, 3)
    run = Run(target, target, {"method": "mtjd", "gamma": gamma}, eos, temperature=0.0)
    results = run.generate(PROMPTS, [RowSettings(temperature=0)] * 3, [8, 7, 9])
    for prompt, limit, result in zip(PROMPTS, [8, 7, 9], results, strict=True):
        expected: list[int] = []
        while len(expected) < limit and not set(expected) & eos:
            block, _ = best_block(table_law(target, [*prompt, *expected]), gamma, eos)
            expected.extend(block)
        assert list(result.token_ids) == expected[:limit]
        assert set(result.provenance) == {"target"}


def test_target_calls_are_the_forward_passes() -> None:
    target = random_table(6, 4, 2)
    run = Run(target, target, {"method": "mtjd", "gamma": 3}, temperature=0.0)
    decoder = run.decoder()
    decoder.prefill([[1, 2]], [RowSettings(temperature=0)], [30])
    before = run.runners[0].num_calls
    outcomes = [decoder.step([True])[0] for _ in range(3)]
    assert sum(outcome.target_calls for outcome in outcomes if outcome) == run.runners[0].num_calls - before


def test_the_cache_holds_what_was_committed() -> None:
    target = random_table(7, 4, 4)
    run = Run(target, target, {"method": "mtjd", "gamma": 3}, temperature=0.0)
    decoder = run.decoder()
    decoder.prefill(PROMPTS, [RowSettings(temperature=0)] * 3, [30] * 3)
    committed = [list(prompt) for prompt in PROMPTS]
    for _ in range(3):
        for sequence, outcome in zip(committed, decoder.step([True] * 3), strict=True):
            assert outcome is not None
            sequence.extend(outcome.tokens)
    for row, sequence in enumerate(committed):
        cached = len(sequence) - 1
        assert int(run.runners[0].lengths[row]) == cached
        assert run.runners[0]._tokens[row, :cached].tolist() == sequence[:-1]
        assert [int(decoder.previous[row]), int(decoder.pending[row])] == sequence[-2:]


def test_a_spent_budget_is_a_clear_error() -> None:
    decoder = JointExactDecoder(TableRunner(torch.zeros(8, 8).double()), 3, frozenset(), search_budget=5)
    decoder.prefill([[1]], [RowSettings(temperature=0)], [9])
    with pytest.raises(SearchBudgetError) as error:
        decoder.step([True])
    assert str(error.value) == (
        "exact joint search expanded 5 prefixes without proving an optimum for 3 tokens; "
        "lower --gamma, raise --search-budget, or use a temperature above 0"
    )


@pytest.mark.parametrize("spare", [0, -1])
def test_the_budget_counts_expanded_prefixes(spare: int) -> None:
    law = table_law(random_table(8, 4, 2), [1])
    needed = search(law, 3, frozenset()).num_expanded
    if spare < 0:
        with pytest.raises(SearchBudgetError):
            search(law, 3, frozenset(), budget=needed + spare)
    else:
        assert search(law, 3, frozenset(), budget=needed).num_expanded == needed


@pytest.mark.parametrize(("vocab", "gamma"), [(2, 3), (2, 4), (3, 2), (8, 2), (4, 2)])
def test_a_beam_as_wide_as_the_tree_equals_the_exact_search(vocab: int, gamma: int) -> None:
    width = vocab**gamma
    if gamma * width > 64:
        width = vocab ** (gamma - 1)
        # Every prefix but the last token is kept, so the best child of each is too.
    for seed, prompt in itertools.product(range(5), [[1], [1, 1, 0]]):
        target = random_table(seed, vocab, 2)
        shape = {"method": "mtjd", "gamma": gamma, "draw": "top"}
        exact = Run(target, target, shape, temperature=0.0)
        beam = Run(target, target, {**shape, "beam_width": width})
        tokens = [
            run.generate([prompt], [RowSettings(temperature=temperature)], [2 * gamma])[0].token_ids
            for run, temperature in ((exact, 0.0), (beam, 1.0))
        ]
        assert tokens[0] == tokens[1]


def test_joint_decoding_beats_greedy_decoding_on_its_own_measure() -> None:
    gains = []
    for seed in range(20):
        target = random_table(seed, 5, 1)
        law = table_law(target, [1])
        greedy: Path = ()
        for _ in range(4):
            greedy = (*greedy, int(np.argmax(law(greedy))))
        _, joint = best_block(law, 4, frozenset())
        gains.append(joint - dict(enumerate_blocks(law, 4))[greedy])
        assert sum(search(law, 4, frozenset()).log_probs) == pytest.approx(joint)
    assert min(gains) >= 0
    assert max(gains) > 0.01
