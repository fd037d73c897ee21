"""Small tensors that never change, made once a device: an iteration then launches nothing for them."""

from functools import cache

import torch
from torch import Tensor

from mtad.structures.between_calls import is_traced

_MOST_NUMBERS = 1024
_NUM_BITS = 64


def first_numbers(count: int, device: torch.device, start: int = 0) -> Tensor:
    """`start`, `start + 1` and so on, `[count]` int64; not to be written to.

    A compiler is shown how they come about, for it can do without the memory.
    """
    if start + count > _MOST_NUMBERS or is_traced():
        return torch.arange(start, start + count, device=device)
    return _numbers(device)[start : start + count]


def single_bits(count: int, device: torch.device, start: int = 0) -> Tensor:
    """Bit `start` alone, bit `start + 1` alone and so on, at most bit 63, `[count]` int64; not to be written to."""
    if is_traced():
        numbers = torch.arange(start, start + count, device=device)
        return torch.ones_like(numbers) << numbers
    return _bits(device)[start : start + count]


@cache
def _numbers(device: torch.device) -> Tensor:
    # Whoever asks first may be in inference mode, and others not.
    with torch.inference_mode(False):
        return torch.arange(_MOST_NUMBERS, device=device)


@cache
def _bits(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        numbers = torch.arange(_NUM_BITS, device=device)
        return torch.ones_like(numbers) << numbers
