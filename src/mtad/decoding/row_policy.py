"""What the loop lets decide about rows between iterations."""

from collections.abc import Sequence
from typing import Protocol

from mtad.decoding.outcome import RowOutcome
from mtad.structures.rows import RowControls


class RowPolicy(Protocol):
    """Changes the rows' settings before an iteration, by what the iterations before it brought.

    A row's settings may depend on its own past alone, or a row of a batch would not be the row alone.
    """

    @property
    def needs_host(self) -> bool:
        """Whether it may change rows before the next iteration; iterations that it leaves alone can be replayed."""
        ...

    def start(self, num_rows: int) -> None:
        """Begin a batch."""
        ...

    def add_rows(self, count: int) -> None:
        """Begin with some more rows, behind those that are there."""
        ...

    def apply(self, rows: RowControls) -> RowControls:
        """The rows as the next iteration shall see them."""
        ...

    def note(self, outcomes: Sequence[RowOutcome | None]) -> None:
        """Hear what the last iteration brought; None for idle rows."""
        ...

    def select_rows(self, rows: Sequence[int]) -> None:
        """Go on with the named rows only, in that order."""
        ...
