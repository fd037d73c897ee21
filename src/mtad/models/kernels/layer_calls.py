"""Launches of the kernels between the matrix products of a Llama-like layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtad.models.kernels.launch import power_of_two

_TILE_HEADS = 8
_TILE_NEURONS = 1024
_MOVED_ELEMENTS = 1024
"""Channels times slots that one warp moves at most, where it can choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a call starts from.

    Attributes:
        residual: The tokens' embeddings, `[rows, queries, hidden]`; grows in place from layer to layer.
        normed: The same, normalised for the first layer.
        cosines: Of the tokens' positions, `[rows, queries, head_dim / 2]`.
        sines: The same.
    """

    residual: Tensor
    normed: Tensor
    cosines: Tensor
    sines: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Weights of a root mean square norm and what it adds to the mean."""

    weight: Tensor
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorms:
    """The norms of queries and keys, both with one epsilon; `[head_dim]` each."""

    query: Tensor
    key: Tensor
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Frequencies, `[head_dim / 2]` float32, and the factor on cosines and sines."""

    frequencies: Tensor
    scaling: float


def begin(tokens: Tensor, positions: Tensor, embedding: Tensor, norm: Norm, rotation: Rotation) -> Beginning:
    """Embed tokens, normalise them, and turn positions into cosines and sines.

    Args:
        tokens: `[rows, queries]` int64, contiguous.
        positions: `[rows, queries]` int64, contiguous.
        embedding: `[vocabulary, hidden]`, contiguous, in the dtype of all that is returned.
        norm: Of the first layer's input.
        rotation: How positions become angles.
    """
    from mtad.models.kernels.layers import begin_tokens

    hidden, half = embedding.shape[1], len(rotation.frequencies)
    residual, normed = (embedding.new_empty(*tokens.shape, hidden) for _ in range(2))
    cosines, sines = (embedding.new_empty(*tokens.shape, half) for _ in range(2))
    begin_tokens[(tokens.numel(),)](
        tokens,
        positions,
        embedding,
        rotation.frequencies,
        norm.weight,
        residual,
        normed,
        cosines,
        sines,
        rotation.scaling,
        norm.epsilon,
        HIDDEN=hidden,
        PADDED_HIDDEN=power_of_two(hidden),
        HALF=half,
        PADDED_HALF=power_of_two(half),
        num_warps=_warps(hidden),
    )
    return Beginning(residual=residual, normed=normed, cosines=cosines, sines=sines)


def add_norm(residual: Tensor, update: Tensor, norm: Norm, num_kept: int) -> Tensor:
    """Add to the residual stream and normalise the sum of the last `num_kept` tokens of every row.

    Args:
        residual: `[rows, queries, hidden]`; those tokens are changed in place, the others may be left.
        update: What to add, `[splits, rows, queries, hidden]`, contiguous.
        norm: The norm.
        num_kept: How many.

    Returns:
        `[rows, num_kept, hidden]`.
    """
    from mtad.models.kernels.layers import add_and_normalise

    rows, queries, hidden = residual.shape
    normed = residual.new_empty(rows, num_kept, hidden)
    add_and_normalise[(rows * num_kept,)](
        residual,
        update,
        norm.weight,
        normed,
        norm.epsilon,
        queries,
        num_kept,
        update.stride(0),
        HIDDEN=hidden,
        PADDED_HIDDEN=power_of_two(hidden),
        NUM_SPLITS=len(update),
        num_warps=_warps(hidden),
    )
    return normed


def rotate(
    joint: Tensor, beginning: Beginning, slots: Tensor, keys: Tensor, values: Tensor, norms: HeadNorms | None
) -> Tensor:
    """Split queries, keys and values; keys and values go to the cache.

    Args:
        joint: `[splits, rows, queries, (heads + 2 * key_heads) * head_dim]`, contiguous.
        beginning: Where cosines and sines are.
        slots: Where keys and values go, `[rows, queries]` int64, contiguous.
        keys: The rows' cache, `[rows, key_heads, slots, head_dim]`, written to.
        values: The same, of the same strides.
        norms: Norms of queries and keys, where there are any.

    Returns:
        Rotated queries, `[rows, queries, heads, head_dim]`.
    """
    from mtad.models.kernels.layers import rotate_and_store

    splits, rows, queries, width = joint.shape
    key_heads, head_dim = keys.shape[1], keys.shape[3]
    assert keys.stride() == values.stride()
    heads = width // head_dim - 2 * key_heads
    query = keys.new_empty(rows, queries, heads, head_dim)
    rotate_and_store[(rows * queries, -(-(heads + 2 * key_heads) // _TILE_HEADS))](
        joint,
        beginning.cosines,
        beginning.sines,
        keys if norms is None else norms.query,
        keys if norms is None else norms.key,
        slots,
        query,
        keys,
        values,
        0.0 if norms is None else norms.epsilon,
        queries,
        joint.stride(0),
        *keys.stride()[:3],
        HEADS=heads,
        KEY_HEADS=key_heads,
        HEAD_DIM=head_dim,
        HALF=head_dim // 2,
        PADDED_HALF=power_of_two(head_dim // 2),
        TILE_HEADS=_TILE_HEADS,
        HAS_NORMS=norms is not None,
        NUM_SPLITS=splits,
        num_warps=4,
    )
    return query


def gate(joint: Tensor, dtype: torch.dtype) -> Tensor:
    """`silu(gate) * up`, `[rows, queries, neurons]`, of a contiguous `[splits, rows, queries, 2 * neurons]`."""
    from mtad.models.kernels.layers import gate_neurons

    splits, rows, queries, width = joint.shape
    neurons = width // 2
    output = joint.new_empty(rows, queries, neurons, dtype=dtype)
    gate_neurons[(rows * queries, -(-neurons // _TILE_NEURONS))](
        joint, output, joint.stride(0), NEURONS=neurons, TILE=_TILE_NEURONS, NUM_SPLITS=splits, num_warps=4
    )
    return output


def move(stack: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy slots within every row, in all layers; all sources are read before any target is written.

    Args:
        stack: `[layers, 2, rows, key_heads, slots, head_dim]`, a part of the rows perhaps, written to.
        sources: `[rows, count]` int64, contiguous.
        targets: The same.
    """
    from mtad.models.kernels.layers import move_slots

    layers, _, rows, heads, _, head_dim = stack.shape
    count = sources.shape[1]
    padded_count = max(2, power_of_two(count))
    tile = min(power_of_two(head_dim), max(16, _MOVED_ELEMENTS // padded_count))
    move_slots[(layers * 2 * rows * heads, -(-head_dim // tile))](
        stack,
        sources,
        targets,
        *stack.stride()[1:5],
        rows,
        heads,
        COUNT=count,
        PADDED_COUNT=padded_count,
        HEAD_DIM=head_dim,
        TILE_CHANNELS=tile,
        num_warps=1,
    )


def _warps(hidden: int) -> int:
    """Warps for one token's channels: about 16 a thread."""
    return min(8, max(1, power_of_two(hidden) // 512))
