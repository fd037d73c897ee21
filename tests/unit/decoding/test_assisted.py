"""The loop of draft, score, judge, keep: what it emits, counts and caches."""

import math

import numpy as np
import pytest
import torch
from tests.oracles import Path, sequence_log_probs
from tests.table_models import ALL_METHODS, Run, prefilled, random_table, table_law

from mtad.structures import GenerationResult, RowSettings

ASSISTED = ("autoregressive", "speculative", "mtad", "mmtad")
PROMPTS = [[1], [2, 0, 3], [3, 3], [0, 1, 2, 3, 2, 4]]


def options(method: str, gamma: int = 3, beam_width: int = 3, draw: str = "gumbel") -> dict[str, object]:
    return {"method": method, "gamma": gamma, "beam_width": beam_width, "draw": draw}


def generate(run: Run, count: int = 20, **changes: float) -> list[GenerationResult]:
    settings = [RowSettings(seed=seed, **changes) for seed in range(len(PROMPTS))]  # type: ignore[arg-type]
    return run.generate(PROMPTS, settings, [count] * len(PROMPTS))


@pytest.mark.parametrize("method", ["mtad", "mmtad", "speculative"])
@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
@pytest.mark.parametrize("threshold", [0.5, 0.999])
def test_a_draft_equal_to_the_target_is_accepted_whole(method: str, draw: str, threshold: float) -> None:
    table = random_table(0, 5, 2)
    for result in generate(Run(table, table, options(method, draw=draw)), 20, threshold=threshold):
        assert result.accepted_lengths == (3,) * 5
        assert result.provenance == ("drafted", "drafted", "drafted", "target") * 5
        assert result.stats.target_calls == 5
        assert result.stats.tokens_per_call == 4
        assert result.joint_log_ratios == pytest.approx([0] * 5, abs=1e-9)


def test_a_threshold_of_one_refuses_an_equal_draft() -> None:
    # Log ratios of equal models are zero up to rounding, so the tables hold powers of two only.
    table = torch.full((2, 2), -math.log(2), dtype=torch.float64)
    for result in generate_on(Run(table, table, options("mtad", beam_width=1)), [[1]], 8, threshold=1.0):
        assert result.accepted_lengths == (0,) * 8


def generate_on(run: Run, prompts: list[list[int]], count: int, threshold: float) -> list[GenerationResult]:
    return run.generate(prompts, [RowSettings(threshold=threshold)] * len(prompts), [count] * len(prompts))


@pytest.mark.parametrize("method", ["mtad", "mmtad"])
def test_a_vanishing_threshold_accepts_whatever_the_target_can_say(method: str) -> None:
    run = Run(random_table(1, 5, 2), random_table(2, 5, 2), options(method))
    for result in generate(run, 20, threshold=1e-30):
        assert set(result.accepted_lengths) == {3}


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_of_width_one_is_the_chain(seed: int) -> None:
    tables = random_table(seed, 5, 2), random_table(seed + 50, 5, 2)
    chain = generate(Run(*tables, options("mtad", beam_width=1)), 30)
    tree = generate(Run(*tables, options("mmtad", beam_width=1)), 30)
    for left, right in zip(chain, tree, strict=True):
        assert left.token_ids == right.token_ids
        assert left.accepted_lengths == right.accepted_lengths
        assert left.joint_log_ratios == right.joint_log_ratios


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_log_probs_are_those_of_the_table(method: str, temperature: float) -> None:
    target = random_table(3, 5, 3)
    run = Run(target, random_table(4, 5, 3), options(method), frozenset({4}), temperature=temperature)
    for prompt, result in zip(PROMPTS, generate(run, 17, temperature=temperature, top_k=3), strict=True):
        expected = sequence_log_probs(table_law(target, prompt), result.token_ids)
        assert result.log_probs == pytest.approx(expected, abs=1e-12)
        assert result.stats.perplexity == pytest.approx(math.exp(-np.mean(expected)))


@pytest.mark.parametrize("method", ASSISTED)
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_counts_agree(method: str, count: int) -> None:
    run = Run(random_table(5, 5, 2), random_table(6, 5, 2), options(method))
    decoder_gamma = run.decoder().gamma
    for result in generate(run, count, threshold=0.1):
        assert len(result.token_ids) == len(result.log_probs) == len(result.provenance) == count
        assert result.finish_reason == "length"
        assert result.provenance.count("drafted") == sum(result.accepted_lengths)
        assert len(result.accepted_lengths) == len(result.joint_log_ratios) == result.stats.target_calls
        # All but the last iteration end in a token of the target's own.
        assert result.provenance.count("target") in (result.stats.target_calls - 1, result.stats.target_calls)
        assert max(result.accepted_lengths) <= decoder_gamma
        assert len(result.stats.acceptance_by_depth) == decoder_gamma
        assert sum(result.stats.acceptance_by_depth) == pytest.approx(np.mean(result.accepted_lengths))


@pytest.mark.parametrize("method", ASSISTED)
def test_one_iteration_is_one_target_call_and_gamma_draft_calls(method: str) -> None:
    run = Run(random_table(7, 5, 2), random_table(8, 5, 2), options(method))
    decoder = run.decoder()
    decoder.prefill(PROMPTS, [RowSettings()] * 4, [20] * 4)
    before = [runner.num_calls for runner in run.runners]
    for _ in range(3):
        decoder.step([True] * 4)
    calls = [runner.num_calls - start for runner, start in zip(run.runners, before, strict=True)]
    assert calls == [3, 3 * decoder.gamma]


@pytest.mark.parametrize("method", ASSISTED)
def test_the_cache_after_keeping_a_path_is_that_of_a_fresh_prefill(method: str) -> None:
    run = Run(random_table(9, 5, 4), random_table(10, 5, 4), options(method))
    decoder = run.decoder()
    decoder.prefill(PROMPTS, [RowSettings(seed=seed, threshold=0.05) for seed in range(4)], [30] * 4)
    committed = [list(prompt) for prompt in PROMPTS]
    for _ in range(4):
        for sequence, outcome in zip(committed, decoder.step([True] * 4), strict=True):
            assert outcome is not None
            sequence.extend(outcome.tokens)
        for runner in run.runners[: 1 if method == "autoregressive" else 2]:
            fresh, previous, pending = prefilled(runner.table, committed)
            assert torch.equal(runner.lengths, fresh.lengths)
            assert torch.equal(decoder.pending, pending)
            with torch.inference_mode():
                logits = runner.score_root(decoder.previous, decoder.pending)
            assert torch.equal(logits, fresh.score_root(previous, pending))
    for row, sequence in enumerate(committed):
        cached = len(sequence) - 1
        assert run.runners[0]._tokens[row, :cached].tolist() == sequence[:-1]
        assert run.runners[0]._positions[row, :cached].tolist() == list(range(cached))


@pytest.mark.parametrize("method", ["autoregressive", "speculative"])
def test_greedy_decoding_is_the_argmax_sequence(method: str) -> None:
    target = random_table(11, 6, 3)
    run = Run(target, random_table(12, 6, 3), options(method), temperature=0.0)
    for prompt, result in zip(PROMPTS, generate(run, 25, temperature=0.0, top_k=2, top_p=0.3), strict=True):
        law = table_law(target, prompt)
        path: Path = ()
        for _ in range(25):
            path = (*path, int(law(path).argmax()))
        assert result.token_ids == path


@pytest.mark.parametrize(
    ("method", "drafter"),
    [("speculative", None), ("speculative", "chain"), ("mtad", None), ("mtad", "chain"), ("mmtad", None)],
)
def test_greedy_decoding_does_not_depend_on_the_seed(method: str, drafter: str | None) -> None:
    run = Run(random_table(13, 6, 2), random_table(14, 6, 2), {**options(method), "drafter": drafter}, temperature=0.0)
    results = [run.generate([[1]], [RowSettings(seed=seed, temperature=0)], [20])[0] for seed in range(5)]
    assert len({result.token_ids for result in results}) == 1


@pytest.mark.parametrize("method", ["mtad", "mmtad"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_block_keeps_its_guarantee(method: str, temperature: float) -> None:
    threshold = 0.3
    run = Run(random_table(15, 5, 2), random_table(16, 5, 2), options(method, gamma=4), temperature=temperature)
    results = generate(run, 60, threshold=threshold, temperature=temperature)
    ratios = [ratio for result in results for ratio in result.joint_log_ratios if ratio != 0]
    assert len(ratios) > 20
    assert min(ratios) > math.log(threshold) - 1e-6


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_end_right_after_the_first_eos(method: str, temperature: float) -> None:
    eos = frozenset({0, 4})
    run = Run(random_table(17, 5, 2), random_table(18, 5, 2), options(method), eos, temperature=temperature)
    reasons = set()
    for seed in range(10):
        settings = [RowSettings(seed=seed, threshold=0.01, temperature=temperature)] * len(PROMPTS)
        for result in run.generate(PROMPTS, settings, [6] * len(PROMPTS)):
            reasons.add(result.finish_reason)
            ends = [token in eos for token in result.token_ids]
            assert not any(ends[:-1])
            assert ends[-1] == (result.finish_reason == "stop")
            assert ends[-1] or len(result.token_ids) == 6
            assert len(result.text) == len(ends) - ends[-1]
    assert "stop" in reasons


def test_a_carried_eos_counts_once() -> None:
    # Token 1 ends the text and is certain for both models, so every beam is carried from depth 1 on.
    table = torch.full((3, 3), -torch.inf, dtype=torch.float64)
    table[:, 1] = 0.0
    for method in ("mtad", "mmtad"):
        run = Run(table, table, options(method, gamma=4, beam_width=2, draw="top"), frozenset({1}))
        result = run.generate([[0]], [RowSettings()], [10])[0]
        assert list(result.token_ids) == [1]
        assert list(result.provenance) == ["drafted"]
        assert list(result.accepted_lengths) == [1]
        assert list(result.stats.acceptance_by_depth) == [1, 0, 0, 0]
        assert list(result.log_probs) == [0]
        assert result.finish_reason == "stop"


@pytest.mark.parametrize("method", ["speculative", "mtad", "mmtad"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_refused_share_is_what_rejection_would_refuse(method: str, temperature: float) -> None:
    tables = random_table(5, 5, 1), random_table(6, 5, 1)
    run = Run(*tables, options(method), temperature=temperature)
    is_joint_at_zero = temperature == 0 and method != "speculative"
    scored = RowSettings(temperature=1.0 if is_joint_at_zero else temperature, top_k=0 if is_joint_at_zero else 4)
    for prompt, result in zip(PROMPTS, generate(run, 25, temperature=temperature, top_k=4), strict=True):
        target, draft = (table_law(table, prompt, scored) if scored.temperature else None for table in tables)
        kept = [index for index, origin in enumerate(result.provenance) if origin == "drafted"]
        if target is None or draft is None or not kept:
            assert not result.stats.refused_share
            continue
        refused = []
        for index in kept:
            path: Path = tuple(result.token_ids[:index])
            ratio = math.exp(target(path)[result.token_ids[index]] - draft(path)[result.token_ids[index]])
            refused.append(1 - min(1.0, ratio))
        assert result.stats.refused_share == pytest.approx(np.mean(refused), abs=1e-6)
