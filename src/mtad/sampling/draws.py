"""Random draws as pure functions of (seed, row position, stream, depth, index).

No generator state exists, so a row draws the same numbers alone, in any batch and under graph replay.
"""

from dataclasses import replace
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor

from mtad.structures.between_calls import between_calls, is_traced
from mtad.structures.constants import first_numbers
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
    if rows.noise is not None:
        purposes = _ahead(rows.noise.shape[1] - 2)
        if (stream, depth) in purposes and count <= rows.noise.shape[2]:
            return rows.noise[:, purposes.index((stream, depth)), :count]
    return _numbers(rows.seeds, rows.positions, ((stream, depth),), count)[:, 0]


def draw_ahead(rows: RowControls, gamma: int, count: int) -> RowControls:
    """The same rows with most numbers of an iteration drawn in one go, which `uniform` then looks up.

    Args:
        rows: Seeds and positions of the rows.
        gamma: Depth of the draft; every level is drawn for, and depth 0 of the other streams.
        count: Numbers of each; who wants more draws them all himself.
    """
    return replace(rows, noise=_numbers(rows.seeds, rows.positions, _ahead(gamma), count))


def _ahead(gamma: int) -> "Purposes":
    """What `draw_ahead` draws for."""
    levels = ((Stream.DRAFT, depth) for depth in range(1, gamma + 1))
    return ((Stream.ACCEPT, 0), (Stream.NEXT_TOKEN, 0), *levels)


def uniform_along(rows: RowControls, stream: Stream, length: int) -> Tensor:
    """The first number of depth 0 at each row's position and at those behind it, `[batch, length]` float64."""
    places = rows.positions.unsqueeze(1) + first_numbers(length, rows.positions.device)
    return _numbers(rows.seeds.unsqueeze(1), places, ((stream, 0),), 1)[..., 0, 0]


Purposes = tuple[tuple[Stream, int], ...]
"""Streams and depths."""


def _numbers(seeds: Tensor, positions: Tensor, purposes: Purposes, count: int) -> Tensor:
    """`[..., purposes, count]` float64 for seeds and positions `[...]` int64."""
    purpose_steps = _steps(tuple(int(stream) * 4096 + depth for stream, depth in purposes), seeds.device)
    return _mixed(seeds, positions, purpose_steps, _steps(tuple(range(1, count + 1)), seeds.device))


@between_calls
def _mixed(seeds: Tensor, positions: Tensor, purpose_steps: Tensor, index_steps: Tensor) -> Tensor:
    key = _mix(seeds * _INCREMENT + _INCREMENT)
    key = _mix(key + positions * _INCREMENT)
    key = _mix(key.unsqueeze(-1) + purpose_steps)
    bits = _mix(key.unsqueeze(-1) + index_steps)
    return (_shift_right(bits, 32).double() + 0.5) / 4294967296.0


def _steps(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """So many increments each, wrapped into int64, `[counts]`; not to be written to."""
    if is_traced():
        return _made_steps(counts, device)
    return _kept_steps(counts, device)


def _made_steps(counts: tuple[int, ...], device: torch.device) -> Tensor:
    # A list of numbers would have to come from the host.
    return torch.cat([torch.arange(count, count + 1, device=device) for count in counts]) * _INCREMENT


@cache
def _kept_steps(counts: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _made_steps(counts, device)


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
