"""What is kept for every row of a batch."""

from collections.abc import Hashable, Sequence
from typing import Protocol

from torch import Tensor


class RowState(Protocol):
    """A memory of the rows that a decoder allocates, fills and thins: a model's cache, or the text itself."""

    @property
    def cache_bytes(self) -> int:
        """Memory that is held for the rows."""
        ...

    @property
    def slot_bytes(self) -> int:
        """Memory of one token of one row."""
        ...

    @property
    def storage(self) -> "RowState":
        """What holds the memory: this one, or one that it wraps."""
        ...

    def allocate(self, batch_size: int, capacity: int) -> None:
        """Make room; forgets what was there."""
        ...

    def prefill(self, token_ids: Tensor, lengths: Tensor, num_shared: int = 0) -> None:
        """Take the prompts, `[batch, tokens]` int64, of which `lengths` tokens are committed and one is pending.

        All prompts begin with the same `num_shared` tokens.
        """
        ...

    def use_rows(self, first_row: int, num_rows: int, longest: int) -> None:
        """Let every call concern these neighbouring rows alone, none of which has more cached tokens than `longest`."""
        ...

    def begin_row(self, row: int, prompt: Sequence[int], num_cached: int) -> None:
        """Start anew in one of all rows, whose first `num_cached` slots hold the prompt's tokens already."""
        ...

    def prefill_chunk(self, token_ids: Tensor, counts: Tensor, longest: int) -> None:
        """Take `counts` more tokens of every row, `[batch]` and `[batch, tokens]` int64; no row is then longer."""
        ...

    def pass_over(self, tokens: Tensor, active: Tensor) -> None:
        """Hear of one more token of every active row without computing; `refeed` makes up for it.

        Args:
            tokens: New last tokens, `[batch]` int64; those before them are committed.
            active: `[batch]` bool; the other rows stay as they are.
        """
        ...

    def refeed(self, token_ids: Tensor, counts: Tensor, longest: int) -> None:
        """Take the last committed tokens of every row once more, for those that were passed over.

        Args:
            token_ids: Right-padded, `[batch, tokens]` int64.
            counts: Tokens of each row, `[batch]` int64; may be 0.
            longest: No row has more committed tokens.
        """
        ...

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens' memory of one of all rows over another's."""
        ...

    def swap_rows(self, first: int, second: int, num_tokens: int) -> None:
        """Exchange two of all rows, of which neither has more than `num_tokens` tokens."""
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
