"""Which cache row belongs to what: rows of one kind are neighbours, so that a call works on a slice."""

from collections.abc import Callable, Hashable
from enum import Enum


class Place(Enum):
    """The blocks that are always there, behind those of the decoders."""

    FREE = "free"
    PREFILLING = "prefilling"


class Seating:
    """Divides rows into neighbouring blocks; a row that changes its block trades places on the way.

    The blocks of decoders come first, then free rows, then those whose prompts are being read. A row passes one border
    at a time: it changes places with the row at the border, so that a change costs one swap a block.

    Args:
        num_rows: Rows; all of them free.
        swap: Exchanges what two rows hold.
    """

    def __init__(self, num_rows: int, swap: Callable[[int, int], None]) -> None:
        self._blocks: list[Hashable] = [Place.FREE, Place.PREFILLING]
        self._sizes = [num_rows, 0]
        self._swap = swap

    def open(self, block: Hashable) -> None:
        """Add an empty block behind those of other decoders, if it is not there."""
        if block not in self._blocks:
            index = self._blocks.index(Place.FREE)
            self._blocks.insert(index, block)
            self._sizes.insert(index, 0)

    def close(self, block: Hashable) -> None:
        """Remove an empty block."""
        index = self._blocks.index(block)
        assert not self._sizes[index], "a block with rows cannot be closed"
        del self._blocks[index], self._sizes[index]

    def rows_of(self, block: Hashable) -> range:
        """The rows of a block."""
        index = self._blocks.index(block)
        start = sum(self._sizes[:index])
        return range(start, start + self._sizes[index])

    def transfer(self, row: int, block: Hashable) -> int:
        """Put a row into another block; returns where it lies then."""
        goal = self._blocks.index(block)
        here = self._index_of(row)
        while here != goal:
            rows = self.rows_of(self._blocks[here])
            border = rows[-1] if here < goal else rows[0]
            if border != row:
                self._swap(row, border)
            row = border
            self._sizes[here] -= 1
            here += 1 if here < goal else -1
            self._sizes[here] += 1
        return row

    def _index_of(self, row: int) -> int:
        return next(index for index, block in enumerate(self._blocks) if row in self.rows_of(block))
