"""The kernels of sampling and training against plain PyTorch.

Runs on a CUDA device, or anywhere in Triton's interpreter:
`TRITON_INTERPRET=1 pytest tests/gpu/test_distill_kernels.py`.
"""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mtad.distill import fast_sampling, losses
from mtad.distill.fast_llama import FastLlama, is_plain_llama
from mtad.distill.fast_losses import compare_in_place
from mtad.distill.fast_sampling import DeviceSampler, draw_tokens
from mtad.models.graphs import CudaGraphCapture
from mtad.models.transformers_runner import TransformersRunner

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSSES = ["kl", "tv", "acceptance"]
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 8e-3}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and not IS_INTERPRETED, reason="neither a CUDA device nor Triton's interpreter"
    ),
]


def _logits(rows: int, width: int, seed: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))).to(DEVICE, dtype)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("width", [61, 4096, 4100])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "trimmed"])
def test_loss_overlap_and_gradient(loss: str, dtype: torch.dtype, width: int, is_whole: bool) -> None:
    target = _logits(5, width, 1, dtype)
    target[0, 3] = -torch.inf
    columns = None if is_whole else torch.arange(0, width, 3, device=DEVICE)
    own = _logits(5, width if columns is None else len(columns), 2, dtype)
    log_probs = target.double().log_softmax(-1)
    log_probs = log_probs if columns is None else log_probs[:, columns]
    expected = losses.compare(log_probs, own.double(), loss, is_whole=is_whole)
    gradient = own.clone()
    found = compare_in_place(target, gradient, loss, columns, 0.5)
    torch.testing.assert_close(found[0].double(), expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].double(), expected.overlap, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), 0.5 * expected.gradient, rtol=TOLERANCES[dtype], atol=3e-7)
    again = own.clone()
    assert torch.equal(compare_in_place(target, again, loss, columns, None)[0], found[0])
    assert torch.equal(again, own)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("whose", ["target", "own"])
def test_a_bad_logit_makes_a_bad_loss(loss: str, whose: str) -> None:
    logits = {"target": _logits(2, 61, 1, torch.float32), "own": _logits(2, 61, 2, torch.float32)}
    logits[whose][1, 7] = torch.nan
    assert all(item.isnan() for item in compare_in_place(logits["target"], logits["own"], loss, None, 1.0))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_fused_loss_in_chunks(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = _logits(9, 61, 1, torch.float32)
    pair = [_logits(9, 8, 2, torch.float32) / 3, _logits(61, 8, 3, torch.float32) / 3]
    found = []
    for is_fast in (False, True):
        monkeypatch.setattr(losses, "compares_fast", lambda _, answer=is_fast: answer)
        states, head = (item.clone().requires_grad_() for item in pair)
        (value,), overlaps = losses.fused_loss(lambda a, b: target[a:b], [(states, head)], loss, 4)
        found.append([value.detach(), overlaps, *torch.autograd.grad(3 * value, (states, head))])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def _llama(dtype: torch.dtype, **changes: Any) -> Any:
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 61}
    config = LlamaConfig(**(sizes | {"intermediate_size": 80, "num_hidden_layers": 2} | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    return model.to(DEVICE, dtype).eval()


def _texts() -> Tensor:
    return torch.randint(3, 61, (3, 13), generator=torch.Generator().manual_seed(4)).to(DEVICE)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        {"num_key_value_heads": 3},
    ],
    ids=["grouped", "scaled", "whole heads"],
)
def test_the_fast_llama_reads_and_learns_as_its_modules_do(changes: dict[str, Any]) -> None:
    model = _llama(torch.float32, **changes)
    tokens, inner = _texts(), model.base_model
    weights = list(inner.parameters())
    outer = torch.randn(3, 13, 48, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    expected = inner(input_ids=tokens, use_cache=False).last_hidden_state
    hidden = FastLlama(model).hidden(tokens, torch.float32)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=2e-5)
    gradients = [torch.autograd.grad((item * outer).sum(), weights) for item in (hidden, expected)]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_fast_llama_rounds_as_a_frozen_model_in_bfloat16_does() -> None:
    model = _llama(torch.bfloat16).requires_grad_(False)
    exact = _llama(torch.float64).base_model(input_ids=_texts(), use_cache=False).last_hidden_state
    own = model.base_model(input_ids=_texts(), use_cache=False).last_hidden_state
    fast = FastLlama(model)
    for _ in range(2):
        distance = (fast.hidden(_texts(), torch.bfloat16) - exact).abs().mean()
        # Triton's interpreter cuts where a device rounds.
        assert distance < 1.5 * (own - exact).abs().mean()


def test_gradients_of_narrow_products_are_near_the_wide_ones() -> None:
    model = _llama(torch.float32)
    weights = list(model.base_model.parameters())
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        hidden = FastLlama(model).hidden(_texts(), dtype)
        assert hidden.dtype == dtype
        found.append(torch.autograd.grad(hidden.float().square().sum() + hidden.float().sum(), weights))
    for one, two in zip(*found, strict=True):
        assert two.dtype == torch.float32
        assert (one - two).norm() < 0.05 * one.norm()


def test_what_a_fast_llama_would_compute_otherwise_is_left_to_the_modules() -> None:
    assert is_plain_llama(tiny_model("llama", dtype=torch.float32))
    assert not is_plain_llama(tiny_model("qwen2", dtype=torch.float32))
    assert not is_plain_llama(_llama(torch.float64))
    assert not is_plain_llama(_llama(torch.float32, attention_bias=True))
    assert not is_plain_llama(
        _llama(torch.float32, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0})
    )


def test_tokens_are_drawn_with_their_probabilities() -> None:
    rows, width, inverse = 400 if IS_INTERPRETED else 200_000, 13, 1 / 0.7
    logits = _logits(1, width, 6, torch.float32)
    numbers = torch.arange(rows, device=DEVICE)
    seed, place = torch.tensor([2**61 + 5], device=DEVICE), torch.tensor([3], device=DEVICE)
    temperature = torch.tensor([inverse], device=DEVICE)
    drawn = draw_tokens(logits.expand(rows, -1).contiguous(), seed, temperature, numbers, place)
    probabilities = (logits[0].double() * inverse).softmax(-1)
    counts = torch.bincount(drawn, minlength=width).double()
    is_likely = probabilities * rows > 5
    chi_squared = ((counts - rows * probabilities).square() / (rows * probabilities))[is_likely].sum()
    assert chi_squared < 2.2 * int(is_likely.sum())
    assert torch.equal(drawn, draw_tokens(logits.expand(rows, -1).contiguous(), seed, temperature, numbers, place))


def test_noise_depends_on_seed_text_and_place_and_not_on_the_row() -> None:
    logits = torch.zeros(8, 3000, device=DEVICE)
    temperature, texts = torch.ones(1, device=DEVICE), torch.arange(8, device=DEVICE)
    seed, place = torch.tensor([7], device=DEVICE), torch.tensor([0], device=DEVICE)
    drawn = draw_tokens(logits, seed, temperature, texts, place)
    assert len(set(drawn.tolist())) > 5
    assert torch.equal(draw_tokens(logits, seed, temperature, texts.flip(0), place), drawn.flip(0))
    for changed in ((seed + 1, place), (seed, place + 1)):
        assert not torch.equal(draw_tokens(logits, changed[0], temperature, texts, changed[1]), drawn)


def _sampler(ends: list[int], rows: int, capacity: int = 24) -> DeviceSampler:
    runner = TransformersRunner(tiny_model("llama", dtype=torch.float32).to(DEVICE))
    runner.attach()
    capture = CudaGraphCapture() if DEVICE == "cuda" else lambda call: call
    return DeviceSampler(runner, ends, rows=rows, capacity=capacity, capture=capture)


def test_the_first_tokens_of_texts_follow_the_target() -> None:
    rows, temperature = 100 if IS_INTERPRETED else 20_000, 0.7
    sampler = _sampler([], rows)
    drawn = sampler.sample([[5, 6, 7], [9]] * (rows // 2), 2, temperature, torch.Generator().manual_seed(0))
    assert {len(item) for item in drawn} == {2}
    sampler.target.model.set_attn_implementation("sdpa")
    tokens = torch.tensor([[5, 6, 7]], device=DEVICE)
    logits = sampler.target.model(input_ids=tokens).logits[0, -1].double().cpu() / temperature
    found = torch.bincount(torch.tensor([item[0] for item in drawn[::2]]), minlength=61) / (rows // 2)
    assert (found - logits.softmax(-1)).abs().sum() < (0.6 if IS_INTERPRETED else 0.1)


def test_texts_end_with_the_end_token_and_do_not_depend_on_rows_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_sampling, "_FEWEST_ROWS", 4)
    prompts = [[5, 6], [7], [8, 9, 10]] * 6
    texts = _sampler([2, 3, 4], 18).sample(prompts, 34, 1.0, torch.Generator().manual_seed(1))
    ends = [[place for place, token in enumerate(item) if token in (2, 3, 4)] for item in texts]
    assert any(ends)
    assert all(found == [len(item) - 1] for found, item in zip(ends, texts, strict=True) if found)
    assert {len(item) for found, item in zip(ends, texts, strict=True) if not found} <= {34}
    # Most rows end early, so the others are moved together on the way; without an end nobody moves.
    whole = _sampler([], 18).sample(prompts, 34, 1.0, torch.Generator().manual_seed(1))
    assert sum(len(item) < 17 for item in texts) > 9
    agreeing = sum(one == two[: len(one)] for one, two in zip(texts, whole, strict=True))
    assert agreeing >= 17


def test_a_sampler_gives_the_same_texts_again_and_finds_room_for_more() -> None:
    sampler = _sampler([2], 4)
    first = sampler.sample([[5]] * 4, 6, 1.0, torch.Generator().manual_seed(1))
    longer = sampler.sample([[5, 6, 7] * 9] * 9, 8, 1.0, torch.Generator().manual_seed(2))
    assert len(longer) == 9
    assert sampler.sample([[5]] * 4, 6, 1.0, torch.Generator().manual_seed(1)) == first
    assert sampler.sample([[5]] * 4, 6, 1.0, torch.Generator().manual_seed(3)) != first
