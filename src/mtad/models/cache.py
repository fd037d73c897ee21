"""A static key-value cache whose rows write at slots of their own."""

import math
import mmap
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_LEAST_MAPPED_BYTES = 1 << 20


class SlotCacheLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, `[batch, key_heads, slots, head_dim]`, allocated at the first update."""

    is_sliding = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros shaped after the first states, `[batch, key_heads, tokens, head_dim]`."""
        heads, slots = key_states.shape[1], self._cache.num_slots
        batch = self._cache.total_rows
        keys = _zeros(key_states, (batch, heads, slots, key_states.shape[-1]))
        self.hold(keys, _zeros(value_states, (batch, heads, slots, value_states.shape[-1])))

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Keep these as the contents, each `[rows, key_heads, slots, head_dim]`."""
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states at the cache's current slots; returns the leading slots that may be read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._cache.in_use(self.contents)
        rows, slots = self._cache.write_index(keys.device)
        keys[rows, :, slots] = key_states.transpose(1, 2)
        values[rows, :, slots] = value_states.transpose(1, 2)
        readable = self._cache.num_readable
        return keys[:, :, :readable], values[:, :, :readable]

    @property
    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, each `[rows, key_heads, slots, head_dim]`."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the readable keys."""
        return self._cache.num_readable, 0

    def get_seq_length(self) -> int:
        """Always 0: positions are passed with every call."""
        return 0

    def get_max_length(self) -> int:
        """Slots per row."""
        return self._cache.num_slots


class SlotCache(Cache):
    """The cache of one model for a fixed batch and number of slots.

    Args:
        num_layers: Layers of the model that keep keys.
        batch_size: Rows.
        num_slots: Slots per row.

    Attributes:
        total_rows: Rows that there are.
        num_rows: Rows in use: what a model's call reads and writes.
        first_row: The first of them.
        stack: Keys and values of all layers in one piece, `[layers, 2, rows, key_heads, slots, head_dim]`, after
            `stack_layers`; the layers' contents are views of it.
    """

    def __init__(self, num_layers: int, batch_size: int, num_slots: int) -> None:
        self.slot_layers = [SlotCacheLayer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self.slot_layers))
        self.total_rows = self.num_rows = batch_size
        self.num_slots = num_slots
        self.first_row = 0
        self.num_readable = 0
        self.stack: Tensor | None = None
        self._slots: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def stack_layers(self, key_heads: int, head_dim: int, like: Tensor) -> Tensor:
        """Give all layers, of one shape, their memory in one piece, unless they have it; returns `stack`.

        Args:
            key_heads: Key heads of every layer.
            head_dim: Channels of a key and of a value.
            like: A tensor of the keys' dtype and device.
        """
        if self.stack is None:
            shape = (len(self.slot_layers), 2, self.total_rows, key_heads, self.num_slots, head_dim)
            self._hold_stack(_zeros(like, shape))
        assert self.stack is not None
        return self.stack

    def _hold_stack(self, stack: Tensor) -> None:
        self.stack = stack
        for layer, contents in zip(self.slot_layers, stack, strict=True):
            layer.hold(contents[0], contents[1])

    def use_rows(self, first_row: int, num_rows: int) -> None:
        """Let calls concern these neighbouring rows alone."""
        self.first_row, self.num_rows = first_row, num_rows

    def in_use(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The rows in use of tensors that lead with all rows; views."""
        if self.num_rows == self.total_rows:
            return tensors
        return tuple(tensor[self.first_row : self.first_row + self.num_rows] for tensor in tensors)

    def aim(self, slots: Tensor, num_readable: int) -> None:
        """Set where the next update writes, `[batch, queries]` int64, and how many leading slots it returns."""
        rows = torch.arange(self.num_rows, device=slots.device).unsqueeze(1)
        self._slots = {slots.device: (rows, slots)}
        self.num_readable = num_readable

    def write_index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and slot indices of the current update on `device`."""
        if device not in self._slots:
            rows, slots = next(iter(self._slots.values()))
            self._slots[device] = (rows.to(device), slots.to(device))
        return self._slots[device]

    @torch.inference_mode()
    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots within every row, `[batch, count]` each; all sources are read before any target is written."""
        rows = torch.arange(self.num_rows, device=sources.device).unsqueeze(1)
        for tensor in self.in_use(tuple(self.tensors())):
            here = (rows.to(tensor.device), targets.to(tensor.device))
            tensor[here[0], :, here[1]] = tensor[here[0], :, sources.to(tensor.device)]

    @torch.inference_mode()
    def select_rows(self, rows: Tensor) -> None:
        """Keep the named rows, `[kept]` int64."""
        if self.stack is not None:
            self._select_stacked(self.stack, rows)
        for layer in self.slot_layers:
            if layer.is_initialized and self.stack is None:
                keys, values = layer.contents
                layer.keys = keys.index_select(0, rows.to(keys.device))
                layer.values = values.index_select(0, rows.to(values.device))
        self.total_rows = self.num_rows = len(rows)
        self.first_row = 0

    def _select_stacked(self, stack: Tensor, rows: Tensor) -> None:
        """As many rows are chosen in place, so that no second cache is needed; fewer or more in a new one."""
        if len(rows) != self.total_rows:
            self._hold_stack(stack.index_select(2, rows))
            return
        for layer in stack:
            layer.copy_(layer.index_select(1, rows))

    @torch.inference_mode()
    def front_rows(self, rows: Tensor, num_slots: int) -> None:
        """Copy the first slots of the named rows, `[kept]` int64, over those of the first rows, where they stay."""
        for tensor in self.tensors():
            tensor[: len(rows), :, :num_slots] = tensor[rows.to(tensor.device), :, :num_slots]

    @torch.inference_mode()
    def copy_row(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first slots of one row over those of another."""
        for tensor in self.tensors():
            tensor[target, :, :num_slots] = tensor[source, :, :num_slots]

    @torch.inference_mode()
    def swap_rows(self, first: int, second: int, num_slots: int) -> None:
        """Exchange the first slots of two rows."""
        for tensor in self.tensors():
            here, there = tensor[first, :, :num_slots], tensor[second, :, :num_slots]
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)

    def tensors(self) -> list[Tensor]:
        """Keys and values of every layer that has been written to."""
        pairs = [layer.contents for layer in self.slot_layers if layer.is_initialized]
        return [tensor for pair in pairs for tensor in pair]


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of a dtype and on a device; on the CPU, large ones take memory page by page as they are written to."""
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < _LEAST_MAPPED_BYTES:
        return like.new_zeros(shape)
    # Without MAP_PRIVATE the pages would count as shared memory.
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)
