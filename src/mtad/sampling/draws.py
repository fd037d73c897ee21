"""Random draws as pure functions of (seed, row position, stream, depth, index).

No generator state exists, so a row draws the same numbers alone, in any batch and under graph replay.
"""

from enum import IntEnum

import torch
from torch import Tensor

from mtad.structures.rows import RowControls


class Stream(IntEnum):
    """Independent purposes that one row draws for at one position."""

    DRAFT = 1
    ACCEPT = 2
    NEXT_TOKEN = 3


def _signed(value: int) -> int:
    """Wrap an integer into int64."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


# SplitMix64 (Steele, Lea, Flood 2014): the golden-ratio increment and the two finaliser multipliers.
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical right shift of int64."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIER_2
    return bits ^ _shift_right(bits, 31)


def uniform(rows: RowControls, stream: Stream, depth: int, count: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), 32 bits each.

    Args:
        rows: Seeds and positions of the rows.
        stream: What the numbers are for.
        depth: Depth within the iteration.
        count: Numbers per row.

    Returns:
        `[batch, count]` float64.
    """
    indices = torch.arange(count, device=rows.seeds.device)
    key = _mix(rows.seeds * _INCREMENT + _INCREMENT)
    key = _mix(key + rows.positions * _INCREMENT)
    key = _mix(key + _signed((int(stream) * 4096 + depth) * _INCREMENT))
    bits = _mix(key.unsqueeze(1) + (indices + 1) * _INCREMENT)
    return (_shift_right(bits, 32).double() + 0.5) / 4294967296.0


def draw_categorical(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Independent draws by inverting the cumulative distribution.

    Args:
        log_probs: Natural logs, normalised or not, `[batch, categories]`; -inf is never drawn.
        uniforms: `[batch, draws]` float64 in (0, 1).

    Returns:
        Category indices, `[batch, draws]` int64.
    """
    weights = (log_probs - log_probs.amax(-1, keepdim=True)).exp()
    cumulative = weights.double().cumsum(-1)
    return torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)


def draw_without_replacement(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Sequential draws that never repeat a category, the law of Gumbel top-k (Kool et al., ICML 2019).

    Args:
        log_probs: Natural logs, normalised or not, `[batch, categories]`.
        uniforms: `[batch, draws]` float64 in (0, 1); `draws` may not exceed `categories`.

    Returns:
        Category indices, `[batch, draws]` int64; -1 once every category of positive probability is taken.
    """
    remaining = log_probs.clone()
    drawn = []
    for draw in range(uniforms.shape[1]):
        exhausted = (remaining == -torch.inf).all(-1, keepdim=True)
        pick = draw_categorical(torch.where(exhausted, log_probs, remaining), uniforms[:, draw : draw + 1])
        drawn.append(torch.where(exhausted, -1, pick))
        remaining.scatter_(1, pick, -torch.inf)
    return torch.cat(drawn, 1)
