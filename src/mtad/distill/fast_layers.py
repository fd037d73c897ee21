"""The parts of a Llama layer between its matrix products as single kernels, with gradients where they are wanted."""

from typing import Any

import torch
from torch import Tensor

from mtad.models.kernels.launch import power_of_two

_BACKWARD_ROWS = 32
"""Tokens of a program that adds up a part of a norm's weight gradient."""
_LARGEST_BLOCK = 1024


def add_norm(stream: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype) -> list[Tensor]:
    """The residual sum and its RMS norm.

    Args:
        stream: `[tokens, width]`, contiguous.
        branch: What a layer adds to it; None adds nothing.
        weight: `[width]`.
        epsilon: Of the norm.
        dtype: Of the norm's result.

    Returns:
        The sum in the stream's dtype and the norm in `dtype`, both `[tokens, width]`.
    """
    if branch is None:
        return [stream, _Norm.apply(stream, weight, epsilon, dtype)]  # type: ignore[no-untyped-call]
    return list(_AddNorm.apply(stream, branch, weight, epsilon, dtype))  # type: ignore[no-untyped-call]


def rotate(states: Tensor, angles: tuple[Tensor, Tensor], heads: tuple[int, int], head_dim: int) -> Tensor:
    """Queries and keys turned by their positions; values stay.

    Args:
        states: All heads of every token side by side, `[tokens, heads * head_dim]`, contiguous.
        angles: Cosines and sines of the positions of one text, `[length, head_dim]` float32 each; texts of that length
            follow one another.
        heads: How many there are, and how many of them turn.
        head_dim: Width of a head.
    """
    found: Tensor = _Rotate.apply(states, *angles, heads, head_dim)  # type: ignore[no-untyped-call]
    return found


def gate(states: Tensor) -> Tensor:
    """silu(first half) * second half, `[tokens, 2 * width]` to `[tokens, width]`."""
    found: Tensor = _Gate.apply(states)  # type: ignore[no-untyped-call]
    return found


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, branch: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total, normed, scales = _launch_norm(stream, branch, weight, epsilon, dtype)
        ctx.save_for_backward(total, scales, weight)
        ctx.branch_dtype = branch.dtype
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        stream, branch, weight = _launch_norm_backward(ctx.saved_tensors, outer[1], outer[0], ctx.branch_dtype)
        return stream, branch, weight, None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        _, normed, scales = _launch_norm(stream, None, weight, epsilon, dtype)
        ctx.save_for_backward(stream, scales, weight)
        return normed

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        stream, _, weight = _launch_norm_backward(ctx.saved_tensors, outer[0], None, None)
        return stream, weight, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, cosine: Tensor, sine: Tensor, heads: tuple[int, int], head_dim: int
    ) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.heads, ctx.head_dim = heads, head_dim
        return _launch_rotation(states, (cosine, sine), heads, head_dim, 1.0)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return _launch_rotation(outer[0], ctx.saved_tensors, ctx.heads, ctx.head_dim, -1.0), None, None, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        from mtad.distill.kernels import layers

        ctx.save_for_backward(states)
        width = states.shape[1] // 2
        gated = states.new_empty(len(states), width)
        block = min(power_of_two(width), _LARGEST_BLOCK)
        with torch.cuda.device_of(states):  # type: ignore[no-untyped-call]
            layers.gate[(len(states), -(-width // block))](states, gated, WIDTH=width, BLOCK=block)
        return gated

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        from mtad.distill.kernels import layers

        (states,) = ctx.saved_tensors
        gradient, width = torch.empty_like(states), states.shape[1] // 2
        block = min(power_of_two(width), _LARGEST_BLOCK)
        grid = (len(states), -(-width // block))
        with torch.cuda.device_of(states):  # type: ignore[no-untyped-call]
            layers.gate_backward[grid](states, outer[0].contiguous(), gradient, WIDTH=width, BLOCK=block)
        return gradient


def _launch_norm(
    stream: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum (the stream itself without a branch), norm, and one over every token's root mean square."""
    from mtad.distill.kernels import layers

    rows, width = stream.shape
    total = stream if branch is None else torch.empty_like(stream)
    normed = torch.empty(rows, width, dtype=dtype, device=stream.device)
    scales = torch.empty(rows, dtype=torch.float32, device=stream.device)
    with torch.cuda.device_of(stream):  # type: ignore[no-untyped-call]
        layers.add_norm[(rows,)](
            stream,
            stream if branch is None else branch.contiguous(),
            weight,
            total,
            normed,
            scales,
            epsilon,
            WIDTH=width,
            BLOCK=power_of_two(width),
            HAS_BRANCH=branch is not None,
        )
    return total, normed, scales


def _launch_norm_backward(
    saved: tuple[Tensor, Tensor, Tensor],
    normed_gradient: Tensor,
    sum_gradient: Tensor | None,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of stream, branch (where there is one) and weight."""
    from mtad.distill.kernels import layers

    total, scales, weight = saved
    rows, width = total.shape
    stream = torch.empty_like(total)
    branch = None if branch_dtype is None else torch.empty_like(total, dtype=branch_dtype)
    programs = -(-rows // _BACKWARD_ROWS)
    parts = torch.empty(programs, width, dtype=torch.float32, device=total.device)
    with torch.cuda.device_of(total):  # type: ignore[no-untyped-call]
        layers.add_norm_backward[(programs,)](
            total,
            scales,
            weight,
            normed_gradient.contiguous(),
            stream if sum_gradient is None else sum_gradient.contiguous(),
            stream,
            stream if branch is None else branch,
            parts,
            rows,
            ROWS_EACH=_BACKWARD_ROWS,
            WIDTH=width,
            BLOCK=power_of_two(width),
            HAS_BRANCH=branch is not None,
            HAS_SUM_GRADIENT=sum_gradient is not None,
        )
    return stream, branch, parts.sum(0).to(weight.dtype)


def _launch_rotation(
    states: Tensor, angles: tuple[Tensor, Tensor], heads: tuple[int, int], head_dim: int, sign: float
) -> Tensor:
    from mtad.distill.kernels import layers

    states, half = states.contiguous(), head_dim // 2
    rotated = torch.empty_like(states)
    with torch.cuda.device_of(states):  # type: ignore[no-untyped-call]
        layers.rotate[(len(states),)](
            states,
            rotated,
            *angles,
            len(angles[0]),
            sign,
            HEADS=heads[0],
            ROTATED_HEADS=heads[1],
            HALF=half,
            PADDED_HEADS=power_of_two(heads[0]),
            PADDED_HALF=power_of_two(half),
        )
    return rotated
