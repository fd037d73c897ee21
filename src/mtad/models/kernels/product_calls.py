"""Matrix products of packed layers: by torch, or for a few tokens by kernels of ours."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtad.models.kernels.launch import power_of_two

MAX_TOKENS = 0
"""Most tokens that our own kernels multiply; torch does the rest."""
_TILE_OUTPUTS = 64
_TILE_INPUTS = 128
_LEAST_TILES = 4
_PROGRAMS_PER_PROCESSOR = 2
_MAX_STAGES = 5
_LEAST_SHARED_BYTES = 99 << 10
"""Shared memory that every recent device has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """How the inputs of a product are shared among programs: `tiles` each for `count` of them."""

    count: int
    tiles: int

    @classmethod
    def choose(cls, *, outputs: int, inputs: int, processors: int) -> "Splits":
        """As many as run at the same time, each with some tiles at least to read ahead."""
        tiles = inputs // _TILE_INPUTS
        rows = -(-outputs // _TILE_OUTPUTS)
        wanted = _PROGRAMS_PER_PROCESSOR * processors // rows
        power = 1 << (max(wanted, 1).bit_length() - 1)
        count = max(1, min(power, tiles // _LEAST_TILES))
        per_split = -(-tiles // count)
        return cls(count=-(-tiles // per_split), tiles=per_split)


def multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in splits that are still to be added up.

    Args:
        inputs: `[rows, queries, inputs]`, contiguous.
        weight: `[outputs, inputs]`, contiguous.
        bias: `[outputs]`, or None.

    Returns:
        `[splits, rows, queries, outputs]`, contiguous: float32 where there are several, else in the inputs' dtype.
    """
    if not _is_ours(inputs):
        return nn.functional.linear(inputs, weight, bias).unsqueeze(0)
    from mtad.models.kernels.products import multiply_rows

    rows, queries, width = inputs.shape
    splits = Splits.choose(outputs=len(weight), inputs=width, processors=_processors(inputs))
    dtype = inputs.dtype if splits.count == 1 else torch.float32
    output = inputs.new_empty(splits.count, rows, queries, len(weight), dtype=dtype)
    multiply_rows[(-(-len(weight) // _TILE_OUTPUTS), splits.count)](
        inputs,
        weight,
        weight if bias is None else bias,
        output,
        rows * queries,
        output.stride(0),
        INPUTS=width,
        OUTPUTS=len(weight),
        TILES_PER_SPLIT=splits.tiles,
        TILE_TOKENS=_padded(rows * queries),
        TILE_OUTPUTS=_TILE_OUTPUTS,
        TILE_INPUTS=_TILE_INPUTS,
        HAS_BIAS=bias is not None,
        WIDENS=not inputs.is_cuda,
        num_warps=4,
        num_stages=_stages(inputs, _TILE_OUTPUTS),
    )
    return output


def multiply_gated(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`silu(gate) * up` of a joint product in one kernel, or None where there is none for such a product.

    Args:
        inputs: `[rows, queries, inputs]`, contiguous.
        weight: `[2 * neurons, inputs]`, contiguous, gates first.
        bias: `[2 * neurons]`, or None.

    Returns:
        `[rows, queries, neurons]`, contiguous.
    """
    if not _is_ours(inputs) or bias is not None:
        return None
    from mtad.models.kernels.products import multiply_and_gate

    rows, queries, width = inputs.shape
    neurons = len(weight) // 2
    output = inputs.new_empty(rows, queries, neurons)
    multiply_and_gate[(-(-neurons // _TILE_OUTPUTS),)](
        inputs,
        weight,
        output,
        rows * queries,
        INPUTS=width,
        NEURONS=neurons,
        TILE_TOKENS=_padded(rows * queries),
        TILE_OUTPUTS=_TILE_OUTPUTS,
        TILE_INPUTS=_TILE_INPUTS,
        WIDENS=not inputs.is_cuda,
        num_warps=4,
        num_stages=_stages(inputs, 2 * _TILE_OUTPUTS),
    )
    return output


def _is_ours(inputs: Tensor) -> bool:
    rows, queries, width = inputs.shape
    is_narrow = inputs.element_size() == 2 or not inputs.is_cuda
    return rows * queries <= MAX_TOKENS and width % _TILE_INPUTS == 0 and is_narrow


def _padded(tokens: int) -> int:
    return max(16, power_of_two(tokens))


def _processors(tensor: Tensor) -> int:
    # The interpreter runs on the CPU, where two processors stand for many.
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 2


def _stages(inputs: Tensor, tile_outputs: int) -> int:
    """Tiles under way, so that two programs share a processor's memory where it is large enough."""
    stage_bytes = (tile_outputs + _padded(inputs.shape[0] * inputs.shape[1])) * _TILE_INPUTS * inputs.element_size()
    properties = torch.cuda.get_device_properties(inputs.device) if inputs.is_cuda else None
    shared_bytes = getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED_BYTES)
    return min(max(2, shared_bytes // _PROGRAMS_PER_PROCESSOR // stage_bytes), _MAX_STAGES)
