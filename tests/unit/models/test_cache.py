"""The static cache: what large ones cost before they are used."""

from pathlib import Path

import torch

from mtad.models.cache import SlotCache


def _resident_bytes() -> int:
    text = Path("/proc/self/statm").read_text(encoding="ascii")
    return int(text.split()[1]) * 4096


def test_memory_is_taken_as_slots_are_written() -> None:
    cache = SlotCache(1, 16, 40_000)
    before = _resident_bytes()
    states = torch.ones(1, 4, 1, 64, dtype=torch.bfloat16)
    cache.use_rows(3, 1)
    cache.aim(torch.tensor([[2]]), 5)
    keys, values = cache.slot_layers[0].update(states, states)
    assert cache.slot_layers[0].contents[0].nbytes == 16 * 40_000 * 4 * 64 * 2
    assert _resident_bytes() - before < 20_000_000
    assert keys.shape == values.shape == (1, 4, 5, 64)
    assert keys.sum() == values.sum() == 4 * 64
    assert bool((keys[0, :, 2] == 1).all())


def test_rows_outside_of_those_in_use_stay_as_they_are() -> None:
    cache = SlotCache(1, 3, 4)
    states = torch.arange(3.0).view(3, 1, 1, 1)
    cache.aim(torch.zeros(3, 1, dtype=torch.int64), 4)
    cache.slot_layers[0].update(states, states)
    cache.use_rows(1, 1)
    cache.aim(torch.zeros(1, 1, dtype=torch.int64), 4)
    cache.slot_layers[0].update(states[:1] + 9, states[:1] + 9)
    assert cache.tensors()[0][:, 0, 0, 0].tolist() == [0, 9, 2]
    cache.swap_rows(0, 1, 4)
    cache.copy_row(1, 2, 4)
    assert cache.tensors()[1][:, 0, 0, 0].tolist() == [9, 0, 0]
