"""A row of a batch is the row alone, whatever it shares the batch with and whoever leaves."""

from typing import Any

import numpy as np
import pytest
from tests.table_models import ALL_METHODS, Run, random_table

from mtad.decoding.decoder import shared_beginning
from mtad.structures import GenerationResult, RowSettings

VOCAB = 5
SHAPES: dict[str, dict[str, Any]] = {
    "autoregressive": {},
    "speculative": {"gamma": 3},
    "mtad": {"gamma": 4, "beam_width": 3},
    "mmtad": {"gamma": 3, "beam_width": 4},
    "beam_sampling": {"beam_width": 3},
    "dynamic_beam": {"gamma": 3, "beam_width": 3, "beam_acceptance": 0.7},
    "mtjd": {"gamma": 3, "beam_width": 2},
}


def random_batch(seed: int, temperature: float | None) -> tuple[list[list[int]], list[RowSettings], list[int]]:
    generator = np.random.default_rng(seed)
    prompts, settings, limits = [], [], []
    for _ in range(int(generator.integers(3, 7))):
        prompts.append([int(token) for token in generator.integers(VOCAB, size=generator.integers(1, 12))])
        limits.append(int(generator.integers(1, 16)))
        settings.append(
            RowSettings(
                seed=int(generator.integers(2**40)),
                temperature=float(generator.uniform(0.3, 2)) if temperature is None else temperature,
                top_k=int(generator.integers(0, VOCAB + 1)),
                top_p=float(generator.choice([1.0, 0.9, 0.5])),
                threshold=float(generator.uniform(0.01, 1)),
            )
        )
    return prompts, settings, limits


def check_same(alone: GenerationResult, together: GenerationResult) -> None:
    assert alone.token_ids == together.token_ids
    assert alone.provenance == together.provenance
    assert alone.accepted_lengths == together.accepted_lengths
    assert alone.finish_reason == together.finish_reason
    assert alone.text == together.text
    assert alone.stats.target_calls == together.stats.target_calls
    assert alone.log_probs == pytest.approx(together.log_probs, abs=1e-12)
    assert alone.joint_log_ratios == pytest.approx(together.joint_log_ratios, abs=1e-12)


def check_batch(run: Run, seed: int, temperature: float | None) -> None:
    prompts, settings, limits = random_batch(seed, temperature)
    together = run.generate(prompts, settings, limits)
    for row, result in enumerate(together):
        alone = run.generate([prompts[row]], [settings[row]], [limits[row]])
        check_same(alone[0], result)


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
def test_a_row_of_a_batch_is_the_row_alone(method: str, draw: str) -> None:
    tables = random_table(1, VOCAB, 3), random_table(2, VOCAB, 3)
    for seed in range(2):
        eos = frozenset({4}) if seed else frozenset()
        run = Run(*tables, {"method": method, "draw": draw, **SHAPES[method]}, eos)
        check_batch(run, seed, temperature=None)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_greedy_row_of_a_batch_is_the_row_alone(method: str) -> None:
    tables = random_table(1, VOCAB, 2), random_table(2, VOCAB, 2)
    for seed in range(2):
        run = Run(*tables, {"method": method, **SHAPES[method]}, frozenset({4}), temperature=0.0)
        check_batch(run, seed, temperature=0.0)


@pytest.mark.parametrize("method", ["autoregressive", "speculative", "mtad", "mmtad", "beam_sampling", "dynamic_beam"])
def test_greedy_and_sampled_rows_share_a_batch(method: str) -> None:
    tables = random_table(3, VOCAB, 2), random_table(4, VOCAB, 2)
    run = Run(*tables, {"method": method, "draw": "gumbel", **SHAPES[method]})
    prompts, settings, limits = (
        [[1, 2], [3], [2, 2, 2]],
        [RowSettings(seed=s, temperature=s) for s in range(3)],
        [9, 12, 7],
    )
    together = run.generate(prompts, settings, limits)
    for row in range(3):
        check_same(run.generate([prompts[row]], [settings[row]], [limits[row]])[0], together[row])


@pytest.mark.parametrize("method", ALL_METHODS)
def test_rows_that_leave_by_name_do_not_change_the_others(method: str) -> None:
    run = Run(random_table(5, VOCAB, 2), random_table(6, VOCAB, 2), {"method": method, **SHAPES[method]})
    prompts = [[1, 2, 3], [4], [0, 1], [2] * 9]
    settings = [RowSettings(seed=seed) for seed in range(4)]
    left, whole = run.decoder(), run.decoder()
    for decoder in (left, whole):
        decoder.prefill(prompts, settings, [20] * 4)
    for _ in range(2):
        assert left.step([True] * 4) == whole.step([True] * 4)
    left.select_rows([3, 1])
    for _ in range(2):
        ours, all_rows = left.step([True] * 2), whole.step([True] * 4)
        for here, there in zip(ours, (all_rows[3], all_rows[1]), strict=True):
            assert here is not None
            assert there is not None
            assert (here.tokens, here.num_drafted) == (there.tokens, there.num_drafted)
            assert here.log_probs == pytest.approx(there.log_probs, abs=1e-12)


@pytest.mark.parametrize("method", [name for name in ALL_METHODS if name != "beam_sampling"])
def test_a_resting_row_goes_on_where_it_stood(method: str) -> None:
    run = Run(random_table(7, VOCAB, 2), random_table(8, VOCAB, 2), {"method": method, **SHAPES[method]})
    prompts, settings = [[1, 2, 3], [4]], [RowSettings(seed=1), RowSettings(seed=2)]
    resting, alone = run.decoder(), run.decoder()
    resting.prefill(prompts, settings, [60] * 2)
    alone.prefill(prompts[1:], settings[1:], [60])
    expected = [alone.step([True])[0] for _ in range(4)]
    seen = []
    for is_active in (True, False, False, True, False, True, True):
        outcome = resting.step([True, is_active])[1]
        assert (outcome is not None) == is_active
        if outcome is not None:
            seen.append(outcome)
    for here, there in zip(seen, expected, strict=True):
        assert there is not None
        assert here.tokens == there.tokens


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_ended_rows_never_run_out_of_their_cache(method: str, gamma: int) -> None:
    # The longest prompt ends first, far past its limit, and rests while two others go on.
    table = random_table(9, VOCAB, 1)
    run = Run(table, table, {"method": method, "gamma": gamma, "beam_width": 2})
    settings = [RowSettings(seed=seed, threshold=1e-9) for seed in range(3)]
    results = run.generate([[1] * 20, [2], [3]], settings, [1, 40, 40])
    assert [len(result.token_ids) for result in results] == [1, 40, 40]


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_shared_beginning_is_read_once_and_changes_nothing(method: str) -> None:
    shared = [int(token) for token in np.random.default_rng(3).integers(VOCAB, size=20)]
    prompts = [[*shared, 1, 2, 3], [*shared, 4], [*shared, 0, 2]]
    settings = [RowSettings(seed=seed) for seed in range(3)]
    run = Run(random_table(1, VOCAB, 3), random_table(2, VOCAB, 3), {"method": method, **SHAPES[method]})
    together = run.generate(prompts, settings, [12] * 3)
    assert [result.stats.num_reused_prompt_tokens for result in together] == [0, 20, 20]
    for row, result in enumerate(together):
        (alone,) = run.generate([prompts[row]], [settings[row]], [12])
        check_same(alone, result)
        assert alone.stats.num_reused_prompt_tokens == 0


def test_what_counts_as_shared() -> None:
    text = list(range(30))
    assert shared_beginning([text, text]) == 29, "the last token stays pending"
    assert shared_beginning([text, text[:20], [*text[:18], 7, 7]]) == 18
    assert shared_beginning([text, [*text[:15], 9]]) == 0, "too little to be worth a call"
    assert shared_beginning([text]) == 0
