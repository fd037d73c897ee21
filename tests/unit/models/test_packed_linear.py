"""Packed layers: the same function, wherever the CPU has kernels for it."""

import pytest
import torch
from tests.tiny_models import tiny_model
from torch import nn

from mtad.models.packed_linear import PackedLinear, PackedSibling, has_packed_kernels, pack_linears


def linear(bias: bool, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 80, bias=bias, dtype=dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 48), (1, 5, 48), (3, 17, 48), (2, 300, 48)])
def test_a_layer_computes_the_same_after_packing(bias: bool, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(linear(bias, dtype))
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        before = model(tokens)
        assert pack_linears(model) == has_packed_kernels(dtype)
        after = model(tokens)
    assert isinstance(model[0], PackedLinear) == has_packed_kernels(dtype)
    assert after.dtype == dtype
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model = nn.Sequential(linear(True, torch.bfloat16))
    pack_linears(model)
    tokens = torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens)[:, :3], model(tokens[:, :3]), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_weights_stay_as_they_are(dtype: torch.dtype) -> None:
    model = nn.Sequential(linear(True, dtype))
    before = model[0]
    assert pack_linears(model) == 0
    assert model[0] is before


def test_layers_that_do_more_than_multiply_stay_as_they_are() -> None:
    class Scaled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    model = nn.Sequential(Scaled(4, 4, dtype=torch.bfloat16), nn.LayerNorm(4), nn.Embedding(3, 4))
    before = list(model)
    assert pack_linears(model) == 0
    assert list(model) == before


def test_a_model_keeps_its_embeddings_and_its_logits() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    token_ids = torch.tensor([[1, 5, 7, 3]])
    with torch.inference_mode():
        before = model(token_ids).logits
        num_packed = pack_linears(model)
        after = model(token_ids).logits
    assert bool(num_packed) == has_packed_kernels(torch.bfloat16)
    assert model.get_input_embeddings().weight.device.type == "cpu"
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)


class Attention(nn.Module):
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    def __init__(self, biases: tuple[bool, bool, bool], width: int = 48) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = zip(("q_proj", "k_proj", "v_proj"), (80, 32, 48), biases, strict=True)
        for name, size, bias in sizes:
            setattr(self, name, nn.Linear(width, size, bias=bias, dtype=torch.bfloat16))

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q_proj(inputs), self.k_proj(inputs), self.v_proj(inputs)


@pytest.mark.parametrize("bias", [False, True])
def test_siblings_compute_the_same_together(bias: bool) -> None:
    model = Attention((bias,) * 3)
    tokens = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        before = model(tokens)
        assert pack_linears(model) == 3 * has_packed_kernels(torch.bfloat16)
        after = model(tokens)
    assert isinstance(model.k_proj, PackedSibling) == has_packed_kernels(torch.bfloat16)
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
        assert ours.view(2, 5, -1, 16).shape[-1] == 16


def test_siblings_never_answer_for_another_input() -> None:
    model, plain = Attention((False,) * 3), Attention((False,) * 3)
    pack_linears(model)
    tokens = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        model.q_proj(tokens)
        other = 2 * tokens
        torch.testing.assert_close(model.v_proj(other), plain.v_proj(other), rtol=0.02, atol=0.02)
        model(tokens)
        tokens.mul_(-3)
        for ours, theirs in zip(model(tokens), plain(tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_layers_that_are_not_alike_are_packed_one_by_one() -> None:
    model = Attention((True, False, True))
    assert pack_linears(model) == 3 * has_packed_kernels(torch.bfloat16)
    assert isinstance(model.q_proj, PackedLinear) == has_packed_kernels(torch.bfloat16)
