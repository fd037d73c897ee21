"""How fast this machine's memory can be read."""

from collections.abc import Callable
from time import perf_counter

import torch

_NUM_BYTES = 1 << 29
_NUM_TRIES = 6


def measure_bandwidth(device: torch.device) -> float:
    """Bytes per second that torch reads from a buffer far larger than any cache, the best of a few tries.

    The larger of what a sum reads and what a copy reads and writes.
    """
    values = torch.ones(_NUM_BYTES // 4, device=device)
    target = torch.empty_like(values)
    sums = min(_seconds(values.sum, device) for _ in range(_NUM_TRIES))
    copies = min(_seconds(lambda: target.copy_(values), device) for _ in range(_NUM_TRIES))
    return max(_NUM_BYTES / sums, 2 * _NUM_BYTES / copies)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        work()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1000
    started = perf_counter()
    work()
    return perf_counter() - started
