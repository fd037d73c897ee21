"""Nucleus and min-p filters over a whole vocabulary without sorting it and without asking the device."""

import torch
from torch import Tensor

from mtad.structures.rows import RowControls

_KEY_BITS = {torch.bfloat16: 16, torch.float16: 16, torch.float32: 32}
_KEY_TYPES = {16: torch.int16, 32: torch.int32}


def filter_unsorted(logits: Tensor, scores: Tensor, rows: RowControls) -> Tensor:
    """Top-p, then min-p, then normalisation, every token in its place.

    Args:
        logits: As the model gave them, `[batch, ..., vocab]` of 16 or 32 bits; their order is that of `scores`.
        scores: Natural log after the temperature, up to a constant, `[batch, ..., vocab]` float32.
        rows: The rows' filters; none by top-k.

    Returns:
        Natural log, normalised, `[batch, ..., vocab]` float32; -inf where filtered out.
    """
    shape = (-1, *[1] * (logits.dim() - 1))
    if rows.has_top_p:
        top_ps = rows.top_ps.view(shape)
        outside = ~nucleus(logits, scores.softmax(-1), top_ps) & (top_ps < 1)
        scores = scores.masked_fill(outside, -torch.inf)
    if rows.has_min_p:
        least = scores.amax(-1, keepdim=True) + rows.min_ps.view(shape).log()
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores.log_softmax(-1)


def nucleus(logits: Tensor, probs: Tensor, top_ps: Tensor) -> Tensor:
    """The most likely tokens whose mass first reaches `top_ps`, of equally likely ones those of the lowest ids.

    The least likely of them is found by bisection of the logits' bit patterns, 16 or 32 rounds of one masked sum:
    exact, always the same sums in the same order, and no step depends on a value.

    Args:
        logits: `[..., vocab]` of 16 or 32 bits.
        probs: Probability of every token, in the order of the logits, `[..., vocab]`.
        top_ps: Mass wanted, broadcast over `[..., 1]`.

    Returns:
        `[..., vocab]` bool.
    """
    keys = ordered_keys(logits)
    bits = _KEY_BITS[logits.dtype]
    # Between the rounds: mass at or above `low` reaches the wanted one, mass at or above `high` does not.
    low = torch.full_like(keys[..., :1], -(1 << (bits - 1)), dtype=torch.int64)
    high = keys.amax(-1, keepdim=True).long() + 1
    for _ in range(bits):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        reaches = _mass(probs, keys >= middle) >= top_ps
        low, high = torch.where(reaches, middle, low), torch.where(reaches, high, middle)
    above, border = keys > low, keys == low
    before = _mass(probs, above) + (border.cumsum(-1) - 1) * torch.where(border, probs, 0.0).amax(-1, keepdim=True)
    return above | (border & (before < top_ps))


def ordered_keys(logits: Tensor) -> Tensor:
    """Integers in the order of floats of 16 or 32 bits; both zeros are one."""
    bits = _KEY_BITS[logits.dtype]
    # Adding zero turns the negative zero into the positive one.
    raw = (logits + 0.0).contiguous().view(_KEY_TYPES[bits])
    return torch.where(raw < 0, raw ^ ((1 << (bits - 1)) - 1), raw)


def _mass(probs: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, probs, 0.0).sum(-1, keepdim=True)
