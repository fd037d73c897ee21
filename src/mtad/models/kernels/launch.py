"""Shapes, tiles and splits of the tree-attention kernel."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mtad.models.forward import ForwardBatch

MAX_HEAD_DIM = 256
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_PROGRAMS_PER_PROCESSOR = 2
_MAX_SPLITS = 32
_FOLDED_ROWS_UNSPLIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How the work is cut.

    Attributes:
        rows: Folded queries per tile, a power of two of at least 16.
        slots: Slots read at a time, a power of two of at least 16.
        splits: Programs that share the slots of one tile.
        warps: Warps per program.
    """

    rows: int
    slots: int
    splits: int
    warps: int

    @classmethod
    def choose(cls, *, folded: int, row_bytes: int, key_heads: int, processors: int) -> "Tiling":
        """Tiles for `folded` queries per key head on a device of so many processors.

        Depends on the shape of the call alone, never on lengths, so that a captured launch fits every length.

        Args:
            folded: Queries times heads per key head.
            row_bytes: Bytes of one key or value, the larger of the two.
            key_heads: Key heads of all rows.
            processors: Multiprocessors of the device.
        """
        # Two stages of keys and values and the queries fit 99 KiB of shared memory, which every recent device has.
        is_wide = row_bytes > 256
        rows = min(max(16, power_of_two(folded)), 32 if row_bytes > 512 else 64 if is_wide else 128)
        slots = 16 if row_bytes > 512 else 32 if is_wide else 64
        tiles = -(-folded // rows) * key_heads
        wanted = -(-processors * _PROGRAMS_PER_PROCESSOR // tiles)
        splits = 1 if folded > _FOLDED_ROWS_UNSPLIT else min(max(1, wanted), _MAX_SPLITS)
        return cls(rows=rows, slots=slots, splits=splits, warps=8 if rows == 128 or is_wide else 4)


def power_of_two(count: int) -> int:
    """The smallest power of two of at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def kernel_serves(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes such queries and values, `[..., head_dim]`, on their device."""
    is_there = query.is_cuda and find_spec("triton") is not None
    return is_there and query.dtype in KERNEL_DTYPES and max(query.shape[-1], value.shape[-1]) <= MAX_HEAD_DIM


def tree_attention_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: ForwardBatch,
    *,
    scaling: float,
    softcap: float | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Attention of tree nodes by the Triton kernel; no mask is built.

    Args:
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, key_heads, slots, head_dim]`; what lies behind the visible slots is not read.
        value: `[batch, key_heads, slots, value_dim]`.
        batch: Who sees what.
        scaling: Factor on the scores.
        softcap: Bound of the scores, where set.
        tiling: How to cut the work; chosen for the device when None.

    Returns:
        `[batch, queries, heads, value_dim]`, contiguous.
    """
    from mtad.models.kernels.tree_attention import attend_splits

    query, key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    rows, heads, queries, head_dim = query.shape
    key_heads, value_dim = key.shape[1], value.shape[-1]
    groups = heads // key_heads
    tiling = tiling or _tiling(query, groups * queries, max(head_dim, value_dim), rows * key_heads)
    visibility = [_beside(tensor, query) for tensor in (batch.prefix_lengths, batch.ancestors, batch.tree_starts)]
    output = query.new_empty(rows, queries, heads, value_dim)
    is_whole = tiling.splits == 1
    places = (tiling.splits, rows, heads, queries)
    partial = output if is_whole else query.new_empty(*places, value_dim, dtype=torch.float32)
    log_mass = output if is_whole else query.new_empty(places, dtype=torch.float32)
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        attend_splits[(rows * key_heads * -(-groups * queries // tiling.rows), tiling.splits)](
            query,
            key,
            value,
            *visibility,
            partial,
            log_mass,
            scaling,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            queries,
            key_heads,
            GROUPS=groups,
            HEAD_DIM=head_dim,
            VALUE_DIM=value_dim,
            PADDED_HEAD_DIM=max(16, power_of_two(head_dim)),
            PADDED_VALUE_DIM=max(16, power_of_two(value_dim)),
            TILE_ROWS=tiling.rows,
            TILE_SLOTS=tiling.slots,
            SOFTCAP=softcap or 0.0,
            WIDENS=not query.is_cuda,
            IS_WHOLE=is_whole,
            num_warps=tiling.warps,
            num_stages=2,
        )
        if not is_whole:
            _join(partial, log_mass, output)
    return output


def _join(partial: Tensor, log_mass: Tensor, output: Tensor) -> None:
    """Weigh the splits, `[splits, rows, heads, queries, value_dim]`, by their masses."""
    from mtad.models.kernels.tree_attention import join_splits

    splits, rows, heads, queries, value_dim = partial.shape
    join_splits[(rows * heads * queries,)](
        partial,
        log_mass,
        output,
        queries,
        heads,
        rows * heads * queries,
        VALUE_DIM=value_dim,
        PADDED_VALUE_DIM=max(16, power_of_two(value_dim)),
        NUM_SPLITS=splits,
        PADDED_SPLITS=max(2, power_of_two(splits)),
        num_warps=4,
    )


def _beside(tensor: Tensor, query: Tensor) -> Any:
    """The tensor on the query's device, contiguous."""
    return tensor.to(query.device).contiguous()


def _tiling(query: Tensor, folded: int, head_dim: int, key_heads: int) -> Tiling:
    # The interpreter runs on the CPU, where two processors stand for many.
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count if query.is_cuda else 2
    row_bytes = power_of_two(head_dim) * query.element_size()
    return Tiling.choose(folded=folded, row_bytes=row_bytes, key_heads=key_heads, processors=processors)
