"""What is kept for every row of a batch."""

from collections.abc import Hashable
from typing import Protocol

from torch import Tensor


class RowState(Protocol):
    """A memory of the rows that a decoder allocates, fills and thins: a model's cache, or the text itself."""

    @property
    def cache_bytes(self) -> int:
        """Memory that is held for the rows."""
        ...

    def allocate(self, batch_size: int, capacity: int) -> None:
        """Make room; forgets what was there."""
        ...

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> None:
        """Take the prompts, `[batch, tokens]` int64, of which `lengths` tokens are committed and one is pending."""
        ...

    def select_rows(self, rows: Tensor) -> None:
        """Keep only the named rows, `[kept]` int64."""
        ...

    def fix_shapes(self) -> None:
        """Make no call depend on what the host knows of the lengths, until the next `allocate`."""
        ...

    def layout(self) -> Hashable:
        """Where the rows' memory lies; a captured call fits as long as this is equal."""
        ...

    def note_longest(self, longest: int) -> None:
        """Hear the length of the longest row, once the host has read it."""
        ...
