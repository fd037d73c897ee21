"""The Triton kernels of sampling and training compile for a GPU that is not there."""

from collections.abc import Iterator

import pytest
import torch
from tests.compiled_kernels import compiled_kernels, needs_compiler

from mtad.distill.fast_layers import add_norm, gate, rotate
from mtad.distill.fast_losses import compare_in_place
from mtad.distill.fast_sampling import draw_tokens

pytestmark = needs_compiler


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    with compiled_kernels() as names:
        yield names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_parts_of_a_layer_compile_with_their_gradients(dtype: torch.dtype, compiled: list[str]) -> None:
    stream, branch, states, neurons = (
        torch.zeros(6, width, dtype=kind, requires_grad=True)
        for width, kind in ((48, torch.float32), (48, dtype), (80, dtype), (160, dtype))
    )
    weight = torch.ones(48, requires_grad=True)
    first = add_norm(stream, None, weight, 1e-5, dtype)
    second = add_norm(stream, branch, weight, 1e-5, dtype)
    angles = torch.ones(3, 16), torch.ones(3, 16)
    found = [*first, *second, rotate(states, angles, (5, 4), 16), gate(neurons)]
    torch.stack([item.float().sum() for item in found]).sum().backward()  # type: ignore[no-untyped-call]
    assert compiled[:4] == ["add_norm", "add_norm", "rotate", "gate"]
    assert sorted(compiled[4:]) == ["add_norm_backward", "add_norm_backward", "gate_backward", "rotate"]


@pytest.mark.parametrize("loss", ["kl", "tv", "acceptance"])
def test_comparisons_compile(loss: str, compiled: list[str]) -> None:
    target, own = (torch.zeros(2, width, dtype=torch.bfloat16) for width in (1100, 300))
    compare_in_place(target, target.clone(), loss, None, 0.5)
    compare_in_place(target, own, loss, torch.arange(300), None)
    assert compiled == ["compare_rows"] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_draws_compile(dtype: torch.dtype, compiled: list[str]) -> None:
    rows, place = torch.arange(3), torch.ones(1, dtype=torch.int64)
    drawn = draw_tokens(torch.zeros(3, 5000, dtype=dtype), place, torch.ones(1), rows, place)
    assert drawn.shape == (3,)
    assert compiled == ["draw_rows"]
