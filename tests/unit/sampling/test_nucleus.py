"""Filters without a sort keep what the sorted ones keep."""

import pytest
import torch
from tests.recorded_calls import record_call
from tests.table_models import controls

from mtad.sampling import warp_candidates, warp_logits
from mtad.sampling.nucleus import filter_unsorted, nucleus, ordered_keys
from mtad.structures import RowSettings

SETTINGS = [
    RowSettings(top_p=0.9),
    RowSettings(top_p=0.3, temperature=0.6),
    RowSettings(top_p=1e-9),
    RowSettings(top_p=1.0),
    RowSettings(top_p=0.999, min_p=0.01),
    RowSettings(min_p=0.2, temperature=2.0),
]


def _logits(dtype: torch.dtype, vocab: int = 3000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(SETTINGS), 4, vocab, generator=generator) * 3
    logits[:, 1] = logits[:, 1].round()
    logits[:, 2, ::2] = -torch.inf
    logits[:, 3] = 0.0
    return logits.to(dtype)


def _sorted_warp(logits: torch.Tensor, settings: RowSettings) -> list[float]:
    """Survivors' log-probabilities of one place in float64, most likely first, by the definition."""
    scores = (logits.double() / torch.tensor(settings.temperature)).log_softmax(-1).sort(descending=True).values
    if settings.top_p < 1:
        before = scores.exp().cumsum(0) - scores.exp()
        scores = scores[(before < settings.top_p) | (torch.arange(len(scores)) == 0)]
    least = scores[0] + torch.tensor(settings.min_p).double().log()
    kept = scores[(scores >= least) & (scores > -torch.inf)]
    return kept.log_softmax(0).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_unsorted", [True, False], ids=["bisected", "first survivors"])
def test_survivors_are_those_of_the_definition(dtype: torch.dtype, is_unsorted: bool) -> None:
    logits, rows = _logits(dtype), controls(*SETTINGS)
    scores = logits.float() / rows.temperatures.view(-1, 1, 1)
    warped = filter_unsorted(logits, scores, rows) if is_unsorted else warp_logits(logits, rows)
    for row, settings in enumerate(SETTINGS):
        for place in range(3 if settings.top_p < 1 else 4):
            survivors = warped[row, place][warped[row, place] > -torch.inf].sort(descending=True).values
            expected = _sorted_warp(logits[row, place], settings)
            # A token whose share decides by rounding alone may fall on either side.
            assert abs(len(survivors) - len(expected)) <= 1 + len(expected) // 1000
            common = min(len(survivors), len(expected))
            assert survivors[:common].tolist() == pytest.approx(expected[:common], abs=2e-3)


def test_equally_likely_tokens_are_cut_by_id() -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 0.0])
    probs = torch.tensor([0.15, 0.3, 0.15, 0.15, 0.15, 0.1])
    kept = [nucleus(logits, probs, torch.tensor(mass)).tolist() for mass in (0.2, 0.31, 0.5, 0.61, 0.95)]
    assert [[index for index, is_kept in enumerate(row) if is_kept] for row in kept] == [
        [1],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_keys_are_in_the_order_of_the_floats(dtype: torch.dtype) -> None:
    values = torch.tensor([-torch.inf, -3.0, -1e-5, -0.0, 0.0, 1e-5, 2.0, 500.0, torch.inf]).to(dtype)
    keys = ordered_keys(values).tolist()
    assert keys == sorted(keys)
    assert keys[3] == keys[4]
    assert len(set(keys)) == len(keys) - 1


def test_the_best_survivors_are_the_first_of_all() -> None:
    rows = controls(*SETTINGS)
    logits = _logits(torch.float32)[:, :2]
    best, every = warp_candidates(logits, rows, num_best=3), warp_candidates(logits, rows)
    assert torch.equal(best.token_ids[:, 0], every.token_ids[:, 0, :3])
    assert torch.equal(best.log_probs, every.log_probs[..., :3])


def test_filters_without_a_sort_never_ask_the_device() -> None:
    rows = controls(*SETTINGS)
    logits = _logits(torch.bfloat16)

    def call() -> torch.Tensor:
        return filter_unsorted(logits, logits.float() / rows.temperatures.view(-1, 1, 1), rows)

    replay = record_call(call)
    before = replay().clone()
    logits.copy_(logits.roll(7, -1))
    again = replay()
    assert not torch.equal(again, before)
    assert torch.equal(again, call())
