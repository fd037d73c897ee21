"""Constraints inside the loop: every drafter, every rule, every tree node, any batch."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.enumeration import Probe, block_law, largest_deviation
from tests.oracles import Array, Law, Path, all_paths, log_softmax, sequence_log_probs, table_logits, warp
from tests.table_models import Run, controls, prefilled, random_table, table_law
from tests.tree_enumeration import drafted_trees, emitted, rejection_decisions
from tests.unit.decoding.test_batching import check_same
from torch import Tensor

from mtad.constraints import ConstrainedRunner, Constraints, Places
from mtad.drafting import chain_tree
from mtad.errors import ConfigError
from mtad.models.table import TableRunner
from mtad.structures import GenerationResult, RowConstraints, RowSettings, StepRecord
from mtad.verification import TokenRejectionVerifier, TreeRejectionVerifier

VOCAB, PROMPT = 4, [1, 2]
SETTING = RowSettings(temperature=0.8, top_k=3, min_p=0.05)
COMBINATIONS: dict[str, dict[str, Any]] = {
    "target only": {"method": "autoregressive"},
    "chain": {"method": "speculative"},
    "block": {"method": "speculative", "verifier": "block"},
    "beam": {"method": "mtad"},
    "beam tree": {"method": "mmtad"},
    "gumbel tree": {"method": "mmtad", "draw": "gumbel", "verifier": "joint_own_path"},
    "branching tree": {"method": "speculative", "drafter": "branching_tree", "verifier": "tree_rejection"},
    "traversal": {"method": "speculative", "drafter": "branching_tree", "verifier": "traversal"},
    "dynamic tree": {"method": "mmtad", "drafter": "dynamic_tree", "verifier": "exact_match"},
    "prompt lookup": {"method": "speculative", "drafter": "prompt_lookup"},
    "early exit": {"method": "mmtad", "exit_layers": 1},
}


def no_repeats(token_ids: Tensor, scores: Tensor) -> Tensor:
    """A token may not follow itself, nor the token two places before come again."""
    return scores.index_fill(1, token_ids[0, -2:], -torch.inf)


CONSTRAINTS = RowConstraints(repetition_penalty=1.4, logit_bias=((0, 0.5), (2, -0.25)), logits_processors=(no_repeats,))


def oracle_law(table: torch.Tensor, prompt: list[int], setting: RowSettings | None = None) -> Law:
    """The constrained law, written down once more; unwarped without a setting."""
    values: Array = table.numpy()

    def law(path: Path) -> Array:
        text = [*prompt, *path]
        logits = table_logits(values, text).copy()
        for token in set(text):
            logits[token] = logits[token] * 1.4 if logits[token] < 0 else logits[token] / 1.4
        logits[0] += 0.5
        logits[2] -= 0.25
        logits[text[-2:]] = -np.inf
        if setting is None:
            return log_softmax(logits)
        temperature, min_p = float(np.float32(setting.temperature)), float(np.float32(setting.min_p))
        return warp(logits, temperature=temperature, top_k=setting.top_k, top_p=setting.top_p, min_p=min_p)

    return law


def tables(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return random_table(seed, VOCAB, 2), random_table(seed + 50, VOCAB, 2)


def run_of(name: str, temperature: float = 0.8) -> Run:
    options = {"gamma": 3, "beam_width": 2, "branching": "2,1,2", "node_budget": 7} | COMBINATIONS[name]
    return Run(*tables(), options, temperature=temperature, is_constrained=True)


class Watcher:
    """Compares every step's laws with the oracle's."""

    def __init__(self, run: Run, prompts: list[list[int]]) -> None:
        self.run, self.texts, self.num_places = run, [list(prompt) for prompt in prompts], 0

    def observe(self, step: StepRecord) -> None:
        tree = step.tree
        for row in range(tree.batch_size):
            law = oracle_law(self.run.target, self.texts[row], SETTING)
            paths = Places.of_tree(tree).paths()[row]
            for place, path in enumerate(paths):
                joint = sum(sequence_log_probs(law, path))
                if joint > -np.inf and (place == 0 or bool(tree.valid[row, place - 1])):
                    got = step.target_log_probs[row, place].numpy()
                    np.testing.assert_allclose(got, law(path), rtol=0, atol=1e-6)
                    self.num_places += 1
            kept = tree.tokens[row, step.acceptance.path_nodes[row, : int(step.acceptance.num_accepted[row])]]
            self.texts[row] += [*kept.tolist(), int(step.acceptance.next_tokens[row])]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_rule_judges_by_the_constrained_law_at_every_node(name: str) -> None:
    run, prompts = run_of(name), [[1, 2], [3, 0, 1], [2]]
    decoder = run.decoder()
    decoder.prefill(prompts, [replace(SETTING, seed=row, constraints=CONSTRAINTS) for row in range(3)], [30] * 3)
    decoder.observer = watcher = Watcher(run, prompts)  # type: ignore[attr-defined]
    for _ in range(6):
        decoder.step([True] * 3)
    assert watcher.num_places >= 18


@torch.inference_mode()
@pytest.mark.parametrize("name", ["chain", "beam tree", "branching tree", "dynamic tree"])
def test_the_drafter_draws_from_its_own_constrained_law(name: str) -> None:
    run, prompt = run_of(name), [3, 0, 1]
    decoder = run.decoder()
    decoder.prefill([prompt], [replace(SETTING, constraints=CONSTRAINTS)], [30])
    law = oracle_law(run.draft, prompt, SETTING)
    tree = decoder.drafter.draft(decoder.previous, decoder.pending, decoder.rows)  # type: ignore[attr-defined]
    for node, path in enumerate(Places.of_tree(tree).paths()[0][1:]):
        if tree.valid[0, node]:
            expected = sum(sequence_log_probs(law, path))
            assert float(tree.joint_draft_log_probs[0, node]) == pytest.approx(expected, abs=1e-6)


def generate(run: Run, count: int = 24, **changes: object) -> list[GenerationResult]:
    settings = [replace(SETTING, seed=row, constraints=CONSTRAINTS, **changes) for row in range(6)]  # type: ignore[arg-type]
    return run.generate([[1, 2], [3], [0, 1, 0], [2, 3], [1], [2, 2]], settings, [count] * 6)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_no_answer_breaks_the_constraint_and_likelihoods_stay_the_targets_own(name: str, temperature: float) -> None:
    run = run_of(name, temperature)
    for prompt, result in zip([[1, 2], [3], [0, 1, 0]], generate(run, temperature=temperature), strict=False):
        text = [*prompt, *result.token_ids]
        assert len(result.token_ids) == 24
        for end in range(len(prompt), len(text)):
            assert text[end] not in text[max(end - 2, 0) : end]
        expected = sequence_log_probs(table_law(run.target, prompt), result.token_ids)
        assert result.log_probs == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["chain", "beam tree", "branching tree", "dynamic tree", "prompt lookup"])
def test_a_row_of_a_batch_is_the_row_alone(name: str) -> None:
    run = run_of(name)
    prompts = [[1, 2], [3], [0, 1, 0, 2, 3], [0, 2], [2, 3]]
    asked = [
        CONSTRAINTS,
        RowConstraints(),
        RowConstraints(repetition_penalty=2.0),
        RowConstraints(presence_penalty=1.5, frequency_penalty=-0.5),
        RowConstraints(logit_bias=((1, 3.0),)),
    ]
    settings = [replace(SETTING, seed=9 + row, constraints=item) for row, item in enumerate(asked)]
    limits = [9, 21, 14, 16, 5]
    together = run.generate(prompts, settings, limits)
    for row, result in enumerate(together):
        check_same(run.generate([prompts[row]], [settings[row]], [limits[row]])[0], result)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_grammar_and_a_processor_that_say_the_same_are_the_same(name: str) -> None:
    run = run_of(name)
    results = [
        run.generate([PROMPT] * 4, [replace(SETTING, seed=seed, constraints=item) for seed in range(4)], [20] * 4)
        for item in (CONSTRAINTS, AS_GRAMMAR)
    ]
    for left, right in zip(*results, strict=True):
        check_same(left, right)


@pytest.mark.parametrize("method", ["mtad", "mmtad"])
def test_width_one_trees_are_chains_under_constraints_too(method: str) -> None:
    options = {"method": method, "gamma": 3, "beam_width": 1}
    run = Run(*tables(), options, is_constrained=True)
    chain = Run(*tables(), options | {"method": "mtad"}, is_constrained=True)
    for left, right in zip(generate(run), generate(chain), strict=True):
        assert left.token_ids == right.token_ids


@pytest.mark.parametrize("name", ["beam", "beam tree"])
def test_the_joint_guarantee_holds_with_constrained_probabilities(name: str) -> None:
    run = run_of(name)
    for prompt, result in zip([[1, 2], [3], [0, 1, 0], [2, 3]], generate(run, threshold=0.3), strict=False):
        target = oracle_law(run.target, prompt, SETTING)
        text: Path = ()
        starts = np.cumsum([0, *[kept + 1 for kept in result.accepted_lengths]])
        for start, kept, ratio in zip(starts, result.accepted_lengths, result.joint_log_ratios, strict=False):
            text = result.token_ids[: int(start)]
            block = result.token_ids[int(start) : int(start) + kept]
            if kept and len(block) == kept:
                joint = sum(float(target((*text, *block[:end]))[token]) for end, token in enumerate(block))
                assert ratio > np.log(0.3)
                assert joint - ratio <= 1e-9


def law_of_the_code(table: torch.Tensor, constraints: RowConstraints, *, drafts: bool) -> Law:
    """The next-token law that the target, or the drafter, is given behind each path."""

    @functools.cache
    def law(path: Path) -> Array:
        shared = Constraints()
        shared.start([PROMPT], [constraints], VOCAB, torch.device("cpu"))
        tokens = torch.tensor([path], dtype=torch.int64).view(1, -1)
        if not drafts:
            runner, _, pending = prefilled(table, [PROMPT])
            tree = chain_tree(tokens, tokens.double())
            scores, _ = shared.apply(runner.score_tree(pending, tree), Places.of_tree(tree))
            return log_softmax(scores[0, -1].numpy())
        constrained = ConstrainedRunner(TableRunner(table), shared)
        constrained.allocate(1, 40)
        constrained.prefill(torch.tensor([PROMPT]), torch.tensor([1]))
        scores = constrained.score_root(torch.tensor([PROMPT[0]]), torch.tensor([PROMPT[1]]))
        for depth in range(1, len(path) + 1):
            bits = torch.tensor([[(1 << depth) - 1]])
            scores = constrained.score_level(tokens[:, depth - 1 : depth], bits, depth - 1, depth)[:, 0]
        return log_softmax(scores[0].numpy())

    return law


class NoRepeats:
    """The same rule as `no_repeats`, as a grammar of tokens."""

    def __init__(self, text: Path = tuple(PROMPT)) -> None:
        self.text = text

    def cursor(self) -> "NoRepeats":
        return NoRepeats(self.text)

    def allowed(self, path: Sequence[int]) -> Tensor | None:
        bits = sum(1 << token for token in range(VOCAB) if token not in (*self.text, *path)[-2:])
        return torch.tensor([bits], dtype=torch.int32)

    def advance(self, tokens: Sequence[int]) -> None:
        self.text = (*self.text, *tokens)


AS_GRAMMAR = RowConstraints(repetition_penalty=1.4, logit_bias=((0, 0.5), (2, -0.25)), grammar=NoRepeats())


@pytest.mark.parametrize("constraints", [CONSTRAINTS, AS_GRAMMAR], ids=["processor", "grammar"])
@pytest.mark.parametrize(
    ("rule", "branching"), [("token_rejection", (1, 1)), ("tree_rejection", (2, 1)), ("tree_rejection", (2, 2))]
)
def test_lossless_rules_keep_the_constrained_law(
    rule: str, branching: tuple[int, ...], constraints: RowConstraints, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = TokenRejectionVerifier() if rule == "token_rejection" else TreeRejectionVerifier()
    probe = Probe(monkeypatch, verifier, f"mtad.verification.{rule}")
    target = law_of_the_code(tables(3)[0], constraints, drafts=False)
    draft = law_of_the_code(tables(3)[1], constraints, drafts=True)
    trees = drafted_trees(target, draft, branching, has_replacement=False)
    law, _ = emitted(probe, trees, branching, rejection_decisions, target)
    expected = block_law(oracle_law(tables(3)[0], PROMPT), VOCAB, len(branching) + 1)
    assert any(probability == 0 for probability in expected.values())
    assert largest_deviation(expected, law) < 1e-7


def forbid_behind(*endings: Path) -> Callable[[Tensor, Tensor], Tensor]:
    def process(token_ids: Tensor, scores: Tensor) -> Tensor:
        text = tuple(token_ids[0].tolist())
        return torch.full_like(scores, -torch.inf) if any(text[-len(end) :] == end for end in endings) else scores

    return process


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_dead_end_ends_the_answer_without_a_token(name: str) -> None:
    run = run_of(name)
    stuck = RowConstraints(logits_processors=(forbid_behind((2,), (3, 1)),))
    settings = [replace(SETTING, seed=seed, top_k=0, min_p=0.0, constraints=stuck) for seed in range(8)]
    results = run.generate([[1, 0]] * 8, settings, [40] * 8)
    for result in results:
        text = (1, 0, *result.token_ids)
        assert result.finish_reason == "dead_end"
        assert text[-1] == 2 or text[-2:] == (3, 1)
        assert 2 not in text[:-1]
        assert (3, 1) not in list(pairwise(text[:-1]))
        assert len(result.provenance) == len(result.log_probs) == len(result.token_ids)


def test_a_dead_end_at_once_gives_an_empty_answer() -> None:
    run = run_of("beam tree")
    stuck = RowConstraints(logit_bias=tuple((token, -np.inf) for token in range(VOCAB)))
    [result] = run.generate([[1, 0]], [replace(SETTING, constraints=stuck)], [5])
    assert (result.token_ids, result.finish_reason) == ((), "dead_end")


@pytest.mark.parametrize("method", ["beam_sampling", "mtjd"])
def test_methods_without_the_loop_refuse_constraints(method: str) -> None:
    run = Run(*tables(), {"method": method}, is_constrained=True)
    with pytest.raises(ConfigError, match=f"{method} takes no penalties.*use one of autoregressive"):
        run.decoder()


def test_every_path_of_the_oracle_is_reachable() -> None:
    # The oracle forbids tokens, but never all of them.
    law = oracle_law(tables(3)[0], PROMPT)
    assert all(np.isfinite(law(path)).any() for length in range(3) for path in all_paths(VOCAB, length))
    assert controls(SETTING).has_min_p
