"""The warp against transformers' own chain of logits warpers, and against NumPy."""

import numpy as np
import pytest
import torch
from tests.oracles import warp
from tests.table_models import controls
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mtad.sampling import warp_candidates, warp_logits
from mtad.structures import RowControls, RowSettings

SETTINGS = [
    RowSettings(temperature=1.0),
    RowSettings(temperature=0.6),
    RowSettings(temperature=1.7, top_k=3),
    RowSettings(top_p=0.8),
    RowSettings(temperature=0.9, top_k=5, top_p=0.5),
    RowSettings(top_k=1),
    RowSettings(top_p=0.01),
    RowSettings(top_k=1000, top_p=0.9),
    RowSettings(temperature=0.8, min_p=0.3),
    RowSettings(temperature=1.3, top_k=6, top_p=0.9, min_p=0.1),
    RowSettings(min_p=1.0),
]


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(3 * np.random.default_rng(seed).standard_normal(shape))


def transformers_warp(logits: Tensor, setting: RowSettings) -> Tensor:
    scores: Tensor = logits
    ids = torch.zeros(len(logits), 1, dtype=torch.int64)
    scores = TemperatureLogitsWarper(float(np.float32(setting.temperature)))(ids, scores)
    if setting.top_k:
        scores = TopKLogitsWarper(setting.top_k)(ids, scores)
    if setting.top_p < 1:
        scores = TopPLogitsWarper(setting.top_p)(ids, scores)
    if setting.min_p:
        scores = MinPLogitsWarper(float(np.float32(setting.min_p)))(ids, scores)  # type: ignore[arg-type]
    return scores.log_softmax(-1)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab", [2, 8, 61])
def test_equals_the_chain_of_transformers(setting: RowSettings, vocab: int) -> None:
    logits = random_logits(vocab, 200, vocab)
    warped = warp_logits(logits, controls(*[setting] * 200))
    torch.testing.assert_close(warped, transformers_warp(logits, setting), rtol=0, atol=1e-12)


def test_each_row_has_its_own_settings() -> None:
    logits = random_logits(3, len(SETTINGS), 4, 9)
    together = warp_logits(logits, controls(*SETTINGS))
    for row, setting in enumerate(SETTINGS):
        expected = transformers_warp(logits[row], setting)
        torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-12)
        alone = warp_logits(logits[row : row + 1], controls(setting))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


def test_equals_numpy() -> None:
    logits = random_logits(4, len(SETTINGS), 7)
    warped = warp_logits(logits, controls(*SETTINGS)).numpy()
    for row, setting in enumerate(SETTINGS):
        expected = warp(
            logits[row].numpy(),
            temperature=float(np.float32(setting.temperature)),
            top_k=setting.top_k,
            top_p=setting.top_p,
            min_p=setting.min_p,
        )
        np.testing.assert_allclose(warped[row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [controls(*SETTINGS), *[controls(*[item] * len(SETTINGS)) for item in SETTINGS]])
def test_candidates_agree_with_the_dense_warp(rows: RowControls) -> None:
    logits = random_logits(5, len(SETTINGS), 3, 11)
    dense = warp_logits(logits, rows)
    torch.testing.assert_close(warp_candidates(logits, rows).dense(), dense, rtol=0, atol=1e-12)
    for count in (1, 4, 11, 50):
        best = warp_candidates(logits, rows, num_best=count)
        assert best.log_probs.shape[-1] <= min(count, 11)
        expected = dense.topk(best.log_probs.shape[-1]).values
        torch.testing.assert_close(best.log_probs, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(dense.gather(-1, best.token_ids), best.log_probs, rtol=0, atol=1e-12)


def test_ties_at_the_border_keep_exactly_top_k_tokens() -> None:
    warped = warp_logits(torch.zeros(1, 9), controls(RowSettings(top_k=4)))
    assert int((warped > -torch.inf).sum()) == 4
    assert float(warped.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision_is_at_least_float32(dtype: torch.dtype) -> None:
    warped = warp_logits(random_logits(6, 2, 5).to(dtype), controls(RowSettings(), RowSettings(top_k=2)))
    assert warped.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert warped.exp().sum(-1).tolist() == pytest.approx([1, 1])


def test_temperature_zero_is_one_hot_for_lossless_rules() -> None:
    logits = random_logits(7, 2, 6)
    rows = controls(RowSettings(temperature=0, top_p=0.3), RowSettings(temperature=2.0), one_hot_at_zero=True)
    warped = warp_logits(logits, rows)
    assert rows.is_greedy.tolist() == [True, False]
    assert warped[0].exp().tolist() == torch.nn.functional.one_hot(logits[0].argmax(), 6).tolist()
    torch.testing.assert_close(warped[1], (logits[1] / 2).log_softmax(-1))


def test_temperature_zero_is_unfiltered_for_joint_rules() -> None:
    logits = random_logits(8, 2, 6)
    rows = controls(RowSettings(temperature=0, top_k=2, top_p=0.3), RowSettings(top_k=2))
    warped = warp_logits(logits, rows)
    torch.testing.assert_close(warped[0], logits[0].log_softmax(-1))
    assert int((warped[1] > -torch.inf).sum()) == 2


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-9])
def test_tiny_temperatures_are_one_hot_and_never_nan(temperature: float) -> None:
    warped = warp_logits(torch.tensor([[3.0, 30.0, -4.0]]), controls(RowSettings(temperature=temperature)))
    assert warped.exp().tolist() == [[0, 1, 0]]


def test_impossible_tokens_of_the_model_stay_impossible() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.0, -torch.inf]])
    for setting in (RowSettings(), RowSettings(top_k=3), RowSettings(top_p=0.999), RowSettings(temperature=5.0)):
        warped = warp_logits(logits, controls(setting))
        assert warped.isinf().tolist() == [[False, True, False, True]]
        assert not warped.isnan().any()
