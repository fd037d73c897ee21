"""Rows of a preallocated cache: their places, lengths, and who uses them."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mtad.errors import CapacityError, spell_bytes
from mtad.models.graphs import places_of, settle

SLOT_STEP = 256
"""Slots of a cache that captured calls read come in such steps, so that prompts of like length find it where it was."""
_KEPT_SLOTS = 4096
"""Such a cache of up to so many slots is used again for prompts of any length."""


def captured_slots(capacity: int) -> int:
    """Slots of a cache that captured calls read, for so many tokens and the waste bin."""
    return -(-(capacity + 1) // SLOT_STEP) * SLOT_STEP


@dataclass(slots=True)
class CacheUse:
    """How a cache is used at the moment; runners that wrap one another share it.

    Attributes:
        all_lengths: Cached committed tokens of every row, `[rows]` int64.
        lengths: Those of the rows in use, a view, `[batch]` int64.
        num_slots: Slots per row.
        longest: No row in use is longer; known on the host.
        has_fixed_shapes: Whether every call is offered all slots.
    """

    all_lengths: Tensor
    lengths: Tensor
    num_slots: int = 0
    longest: int = 0
    has_fixed_shapes: bool = False


class CachedRows(ABC):
    """A preallocated cache of `capacity` slots per row.

    Slots `[0, lengths)` hold the committed tokens whose keys are known. The newest committed token is *pending*:
    it is fed with the next call, at slot `lengths`; tree node i goes to slot `lengths + 1 + i`. The last slot is
    a waste bin for padding.

    A call concerns all rows of the cache, or neighbouring ones that `use_rows` names; the others stay as they are.

    Attributes:
        device: Where tokens go in and logits come out.
    """

    device: torch.device

    @cached_property
    def use(self) -> CacheUse:
        """How the cache is used at the moment."""
        nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
        return CacheUse(nothing, nothing)

    @property
    def lengths(self) -> Tensor:
        """Cached committed tokens per row, `[batch]` int64; changed in place by `prefill` and `keep_path`."""
        return self.use.lengths

    @property
    def num_slots(self) -> int:
        """Slots per row."""
        return self.use.num_slots

    def allocate(self, batch_size: int, capacity: int) -> None:
        """Make room for `batch_size` rows of `capacity` tokens, tree nodes included; forgets what was cached.

        A cache at hand that fits is used again, so that it stays where it is; it may then have more slots: up to
        twice as many, and any number up to some thousand where calls are captured, whose time does not depend on it.

        Raises:
            CapacityError: The memory for the cache is not there.
        """
        use = self.use
        nothing = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        use.all_lengths = use.lengths = settle(use.all_lengths, nothing)
        use.longest, use.has_fixed_shapes = 0, False
        at_hand = self._slots_at_hand(batch_size)
        if capacity < at_hand <= max(2 * (capacity + 1), _KEPT_SLOTS if self.can_be_captured else 0):
            use.num_slots = at_hand
            self._use_slots(0, batch_size)
            return
        use.num_slots = self._slots_for(capacity)
        try:
            self._allocate_slots(batch_size, self.num_slots)
        except (RuntimeError, MemoryError) as error:
            wanted = batch_size * self.num_slots * self.slot_bytes
            size = f" ({spell_bytes(wanted)})" if wanted else ""
            raise CapacityError(
                f"no memory for a cache of {batch_size} rows of {capacity} tokens{size}; "
                "lower --max-new-tokens, the number of prompts per batch, or the prompt length"
            ) from error

    def use_rows(self, first_row: int, num_rows: int, longest: int) -> None:
        """Let every call concern these neighbouring rows alone, until told otherwise or allocated anew.

        Args:
            first_row: The first of them.
            num_rows: How many.
            longest: None of them has more cached tokens.
        """
        self.use.lengths = self.use.all_lengths[first_row : first_row + num_rows]
        self.use.longest = longest
        self._use_slots(first_row, num_rows)

    def begin_row(self, row: int, prompt: Sequence[int], num_cached: int) -> None:
        """Start anew in one row of the whole cache, whose first `num_cached` slots hold the prompt's tokens already."""
        self.use.all_lengths[row] = num_cached

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first slots of one row of the whole cache over those of another."""
        self._copy_slots(source, target, min(num_tokens, self.num_slots))

    def swap_rows(self, first: int, second: int, num_tokens: int) -> None:
        """Exchange two rows of the whole cache, of which neither has more than `num_tokens` cached tokens."""
        self._swap_slots(first, second, min(num_tokens, self.num_slots))
        lengths = self.use.all_lengths
        lengths[[first, second]] = lengths[[second, first]]

    def pass_over(self, tokens: Tensor, active: Tensor) -> None:
        """See `RowState.pass_over`: the slots count as committed, and hold nothing until `refeed`."""
        self.lengths.add_(active)
        self.use.longest += 1

    def fix_shapes(self) -> None:
        """Offer all slots to every call from now on, so that it can be captured; `allocate` ends that."""
        self.use.has_fixed_shapes = True

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values that are held, once they have been written to."""
        return 0

    @property
    def slot_bytes(self) -> int:
        """See `RowState.slot_bytes`; 0 where it is not known."""
        return 0

    def layout(self) -> tuple[Hashable, ...]:
        """See `RowState.layout`."""
        return (self.num_slots, *places_of([self.lengths]))

    def note_longest(self, longest: int) -> None:
        """Tell the exact length of the longest row, once the host has read it; keeps attention short."""
        self.use.longest = longest

    def _slots_for(self, capacity: int) -> int:
        """Slots of a new cache for so many tokens and the waste bin."""
        return captured_slots(capacity) if self.can_be_captured else capacity + 1

    def _slots_at_hand(self, batch_size: int) -> int:
        """Slots per row of a cache of so many rows that can be used again, 0 for none."""
        return 0

    def _visible(self, num_new: int) -> int:
        """Slots to read when `num_new` tokens follow the committed ones."""
        if self.use.has_fixed_shapes:
            return self.num_slots - 1
        return min(self.use.longest + num_new, self.num_slots - 1)

    @property
    def can_be_captured(self) -> bool:
        """Whether calls with fixed shapes can be captured in a CUDA graph."""
        return False

    def release(self) -> None:
        """Give the cache's memory back; `allocate` comes before the next call."""
        self.use.all_lengths = self.use.lengths = self.use.all_lengths[:0]

    def select_rows(self, rows: Tensor) -> None:
        """Keep only the named rows, in that order; `rows` is `[kept]` int64 and may repeat a row."""
        self._select_slots(rows)
        self.use.all_lengths = self.use.lengths = self.lengths[rows]

    @abstractmethod
    def _allocate_slots(self, batch_size: int, num_slots: int) -> None: ...

    @abstractmethod
    def _use_slots(self, first_row: int, num_rows: int) -> None: ...

    @abstractmethod
    def _select_slots(self, rows: Tensor) -> None: ...

    @abstractmethod
    def _copy_slots(self, source: int, target: int, num_slots: int) -> None: ...

    @abstractmethod
    def _swap_slots(self, first: int, second: int, num_slots: int) -> None: ...

    @abstractmethod
    def _move_slots(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slot contents, `[batch, count]` each; sources are read before targets are written."""
