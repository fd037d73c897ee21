"""A draft with another vocabulary: its law is its own, cut to the shared tokens, and every guarantee holds with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from tests.enumeration import Probe, block_law, largest_deviation
from tests.oracles import (
    Array,
    Law,
    Path,
    empirical_distance,
    largest_distance,
    log_softmax,
    sequence_log_probs,
    table_logits,
    warp,
)
from tests.table_models import Run, random_table, table_law
from tests.tree_enumeration import drafted_trees, emitted, rejection_decisions, traversal_decisions
from torch import Tensor

from mtad.config import GenerationOptions
from mtad.decoding import Decoder, build_decoder
from mtad.models.intersection import VocabularyMap
from mtad.models.runner import ModelRunner
from mtad.models.table import TableRunner
from mtad.models.translated_runner import TranslatedRunner
from mtad.structures import GenerationResult, RowConstraints, RowSettings
from mtad.verification import VERIFIERS, RuleSettings

VOCAB = 4
PROMPT = [1, 3, 2]
PARTIAL = VocabularyMap(draft_ids=torch.tensor([4, -1, 0, 2]), fed_ids=torch.tensor([4, 3, 0, 2]), num_tokens=VOCAB)
"""A draft of five tokens: target token 1 is unknown to it and fed as its 3; its tokens 1 and 3 are unknown here."""


def full_map(draft_ids: Sequence[int]) -> VocabularyMap:
    return VocabularyMap(draft_ids=torch.tensor(draft_ids), fed_ids=torch.tensor(draft_ids), num_tokens=len(draft_ids))


def translated_law(table: Tensor, vocabulary: VocabularyMap, settings: RowSettings | None = None) -> Law:
    """The law of a translated table after `PROMPT`: fed the substitutes, cut to the shared tokens, warped."""
    values: Array = table.numpy()

    def law(path: Path) -> Array:
        fed = [int(vocabulary.fed_ids[token]) for token in [*PROMPT, *path]]
        logits = table_logits(values, fed)
        cut = np.array([logits[index] if index >= 0 else -np.inf for index in vocabulary.draft_ids.tolist()])
        if settings is None:
            return log_softmax(cut)
        return warp(
            cut, temperature=float(np.float32(settings.temperature)), top_k=settings.top_k, top_p=settings.top_p
        )

    return law


def runner_law(runner: ModelRunner) -> Law:
    """The same law, asked of a runner level by level."""

    def law(path: Path) -> Array:
        runner.allocate(1, 32)
        runner.prefill(torch.tensor([PROMPT]), torch.tensor([len(PROMPT) - 1]))
        logits = runner.score_root(torch.tensor([PROMPT[-2]]), torch.tensor([PROMPT[-1]]))
        for depth, token in enumerate(path, start=1):
            bits = torch.tensor([[(1 << depth) - 1]])
            logits = runner.score_level(torch.tensor([[token]]), bits, depth - 1, depth)[:, 0]
        return log_softmax(logits[0].numpy())

    return law


@dataclass
class TranslatedRun(Run):
    """A run whose draft has a vocabulary of its own."""

    vocabulary: VocabularyMap = field(default_factory=lambda: PARTIAL)

    def decoder(self) -> Decoder:
        draft = TranslatedRunner(TableRunner(self.draft), self.vocabulary)
        options = GenerationOptions(**self.options)
        return build_decoder(options, TableRunner(self.target), draft, self.eos, temperature=self.temperature)


TARGET, DRAFT = random_table(21, VOCAB, order=2), random_table(22, VOCAB + 1, order=2)
RULES: dict[str, dict[str, Any]] = {
    "token_rejection": {"method": "speculative", "gamma": 2},
    "block": {"method": "speculative", "verifier": "block", "gamma": 2},
    "tree_rejection": {
        "method": "speculative",
        "drafter": "branching_tree",
        "verifier": "tree_rejection",
        "branching": "2,2",
    },
    "traversal": {"method": "speculative", "drafter": "branching_tree", "verifier": "traversal", "branching": "2,2"},
    "exact_match": {"method": "mmtad", "verifier": "exact_match", "gamma": 2, "beam_width": 2},
}
JOINT: dict[str, dict[str, Any]] = {
    "mtad": {"method": "mtad", "gamma": 3, "beam_width": 3},
    "mmtad": {"method": "mmtad", "gamma": 3, "beam_width": 3},
    "dynamic_tree": {"method": "mmtad", "drafter": "dynamic_tree", "gamma": 3, "beam_width": 3, "node_budget": 6},
}


def test_the_draft_speaks_its_own_law_cut_to_the_shared_tokens() -> None:
    asked = runner_law(TranslatedRunner(TableRunner(DRAFT), PARTIAL))
    expected = translated_law(DRAFT, PARTIAL)
    for path in [(), (0,), (1,), (1, 1), (3, 1, 2), (2, 0, 0)]:
        np.testing.assert_allclose(asked(path), expected(path), rtol=0, atol=1e-14)
        assert np.isneginf(asked(path)[1])


@pytest.mark.parametrize("branching", [(1,), (1, 1), (1, 1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("rule", ["tree_rejection", "traversal"])
def test_the_emitted_law_is_the_law_of_the_target(
    rule: str, branching: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chains of one child per node are judged exactly as by token rejection.
    decide = {"tree_rejection": rejection_decisions, "traversal": traversal_decisions}[rule]
    target, draft = table_law(TARGET, PROMPT), runner_law(TranslatedRunner(TableRunner(DRAFT), PARTIAL))
    trees = drafted_trees(target, draft, branching, has_replacement=False)
    probe = Probe(monkeypatch, VERIFIERS[rule](RuleSettings()), f"mtad.verification.{rule}")
    law, length = emitted(probe, trees, branching, decide, target)
    assert largest_deviation(block_law(target, VOCAB, len(branching) + 1), law) < 1e-7
    assert length > 0.3


@pytest.mark.parametrize("rule", RULES)
def test_sampled_answers_follow_the_target(rule: str) -> None:
    # Weissman's bound: a correct rule fails this with probability below 1e-7.
    count, settings = 4_000, RowSettings(temperature=0.8, top_k=3)
    run = TranslatedRun(TARGET, DRAFT, RULES[rule])
    rows = [RowSettings(seed=seed, temperature=0.8, top_k=3) for seed in range(count)]
    results = run.generate([PROMPT] * count, rows, [3] * count)
    law = block_law(table_law(TARGET, PROMPT, settings), VOCAB, 3)
    distance = empirical_distance([result.token_ids for result in results], law)
    assert distance < largest_distance(VOCAB**3, count, 1e-7)
    assert np.mean([np.mean(result.accepted_lengths) for result in results]) > 0.1


@pytest.mark.parametrize("method", JOINT)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_kept_blocks_pass_the_joint_rule_with_the_cut_law_as_reference(method: str, temperature: float) -> None:
    threshold, count = 0.4, 40
    run = TranslatedRun(TARGET, DRAFT, JOINT[method])
    rows = [RowSettings(seed=seed, temperature=temperature, threshold=threshold) for seed in range(count)]
    results = run.generate([PROMPT] * count, rows, [24] * count)
    kept = [
        ratio
        for result in results
        for length, ratio in zip(result.accepted_lengths, result.joint_log_ratios, strict=True)
        if length
    ]
    assert len(kept) > 2 * count
    assert min(kept) > math.log(threshold)
    drafted = {
        token
        for result in results
        for token, origin in zip(result.token_ids, result.provenance, strict=True)
        if origin == "drafted"
    }
    assert drafted == {0, 2, 3}


def test_the_ratio_of_a_first_block_is_that_of_the_two_laws() -> None:
    settings = RowSettings(temperature=0.8)
    run = TranslatedRun(TARGET, DRAFT, JOINT["mtad"] | {"draw": "gumbel"})
    rows = [RowSettings(seed=seed, temperature=0.8, threshold=(0.02, 0.4)[seed % 2]) for seed in range(60)]
    target, draft = table_law(TARGET, PROMPT, settings), translated_law(DRAFT, PARTIAL, settings)
    lengths = set()
    for result in run.generate([PROMPT] * 60, rows, [4] * 60):
        length = result.accepted_lengths[0]
        block = result.token_ids[:length]
        expected = sum(sequence_log_probs(target, block)) - sum(sequence_log_probs(draft, block))
        assert result.joint_log_ratios[0] == pytest.approx(expected, abs=1e-6)
        lengths.add(length)
    assert len(lengths) >= 3


def same(one: GenerationResult, two: GenerationResult) -> bool:
    """Whether two answers are equal to the last bit."""
    names = ("token_ids", "provenance", "accepted_lengths", "joint_log_ratios", "log_probs")
    return all(getattr(one, name) == getattr(two, name) for name in names)


@pytest.mark.parametrize("rule", [*RULES, *JOINT])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]], ids=["identity", "permuted"])
def test_a_whole_vocabulary_changes_no_bit(rule: str, order: list[int]) -> None:
    options = (RULES | JOINT)[rule]
    plain = random_table(23, VOCAB, order=2)
    shuffled = torch.empty_like(plain)
    index = torch.tensor(order)
    shuffled[index[:, None, None], index[:, None], index] = plain
    # A table reads token 0 before the first token, which the shuffled one would read as another.
    prompts = [PROMPT, [0, 1], [2, 2, 1, 0, 3]]
    rows = [RowSettings(seed=seed, top_k=seed, temperature=float(seed > 0)) for seed in range(3)]
    expected = Run(TARGET, plain, options).generate(prompts, rows, [20, 7, 13])
    translated = TranslatedRun(TARGET, shuffled, options, vocabulary=full_map(order))
    got = translated.generate(prompts, rows, [20, 7, 13])
    assert all(same(one, two) for one, two in zip(expected, got, strict=True))


@pytest.mark.parametrize("rule", [*RULES, *JOINT])
def test_a_row_of_a_batch_is_the_row_alone(rule: str) -> None:
    run = TranslatedRun(TARGET, DRAFT, (RULES | JOINT)[rule], eos=frozenset({3}))
    prompts = [[1], PROMPT, [0, 1, 1, 1, 2, 0, 1], [3, 3]]
    limits = [3, 19, 11, 30]
    rows = [
        RowSettings(seed=3, temperature=0.7),
        RowSettings(seed=4, top_k=2, threshold=0.1),
        RowSettings(seed=5, temperature=0),
        RowSettings(seed=6, temperature=2.0, top_p=0.8),
    ]
    together = run.generate(prompts, rows, limits)
    for row, result in enumerate(together):
        alone = run.generate([prompts[row]], [rows[row]], [limits[row]])[0]
        assert (alone.token_ids, alone.accepted_lengths) == (result.token_ids, result.accepted_lengths)
        assert alone.joint_log_ratios == pytest.approx(result.joint_log_ratios, abs=1e-12)


def test_a_translated_draft_can_be_constrained() -> None:
    draft = TranslatedRunner(TableRunner(DRAFT), PARTIAL)
    decoder = build_decoder(
        GenerationOptions(), TableRunner(TARGET), draft, frozenset(), temperature=1.0, is_constrained=True
    )
    bias = RowConstraints(logit_bias=((0, -math.inf),))
    decoder.prefill([[1, 2]], [RowSettings(constraints=bias)], [8])
    outcomes = [decoder.step([True])[0] for _ in range(4)]
    assert all(outcome is not None and outcome.tokens and 0 not in outcome.tokens for outcome in outcomes)
