"""What every row of the caches holds, who owns it, and whose keys a new prompt can take over."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from mtad.decoding.decoder import LEAST_SHARED
from mtad.decoding.seating import Place, Seating
from mtad.models.row_state import RowState


@dataclass(slots=True)
class CacheRow:
    """One row of all caches.

    Attributes:
        ticket: Whose it is; None while it is free.
        prompt: The owner's prompt.
        wanted: The caches that the owner needs.
        has_begun: Whether the owner's prompt is being read, or was.
        tokens: The text that the slots hold; what a former owner left until the new one begins.
        num_cached: Leading tokens whose keys are in every cache of `caches`.
        caches: The caches that hold them.
        last_used: Counts upwards with every row that is taken or left.
    """

    ticket: int | None = None
    prompt: Sequence[int] = ()
    wanted: tuple[RowState, ...] = ()
    has_begun: bool = False
    tokens: list[int] = field(default_factory=list)
    num_cached: int = 0
    caches: tuple[RowState, ...] = ()
    last_used: int = 0

    @property
    def num_unread(self) -> int:
        """Prompt tokens still to be cached; the last one stays pending."""
        return len(self.prompt) - 1 - self.num_cached

    def add_prompt(self, count: int) -> None:
        """Note that the next prompt tokens are cached."""
        self.tokens += self.prompt[self.num_cached : self.num_cached + count]
        self.num_cached += count

    def add_answer(self, tokens: Sequence[int], *, is_drafted: bool = True) -> None:
        """Note the rest of the prompt, or new tokens of the answer; a draft that is left out does not read them."""
        self.tokens += tokens
        if is_drafted:
            # The last token is pending, and a draft may not have seen the one before it.
            self.num_cached = max(len(self.tokens) - 2, 0)


class CacheRows:
    """All rows. A row that is left keeps its text for prompts that begin alike, until it is taken again.

    Args:
        num_rows: Rows of every cache.
    """

    def __init__(self, num_rows: int) -> None:
        self._rows = [CacheRow() for _ in range(num_rows)]
        self._seating = Seating(num_rows, self._swap)
        self._clock = 0

    def __getitem__(self, row: int) -> CacheRow:
        return self._rows[row]

    def rows_of(self, block: Hashable) -> range:
        """The rows of a block."""
        return self._seating.rows_of(block)

    def row_of(self, ticket: int) -> int:
        """Where a ticket's row lies at the moment."""
        return next(index for index, row in enumerate(self._rows) if row.ticket == ticket)

    def tickets_of(self, block: Hashable) -> list[int]:
        """The owners of a block's rows, in their order."""
        return [row.ticket for row in (self._rows[index] for index in self.rows_of(block)) if row.ticket is not None]

    @property
    def num_held(self) -> int:
        """Tokens that owned rows hold."""
        return sum(len(row.tokens) for row in self._rows if row.ticket is not None and row.has_begun)

    def open(self, block: Hashable) -> None:
        """See `Seating.open`."""
        self._seating.open(block)

    def close(self, block: Hashable) -> None:
        """See `Seating.close`."""
        self._seating.close(block)

    def take(self, ticket: int, prompt: Sequence[int], caches: Sequence[RowState]) -> None:
        """Give a free row to a ticket: one that holds the beginning of its prompt, else the one idle for longest."""
        free = self.rows_of(Place.FREE)
        source, count = self._find_source(prompt, caches, free)
        if count < LEAST_SHARED:
            source = min(free, key=lambda row: self._rows[row].last_used)
        row = self._rows[self._seating.transfer(source, Place.PREFILLING)]
        row.ticket, row.prompt, row.wanted, row.has_begun = ticket, prompt, tuple(caches), False
        row.last_used = self._tick()

    def must_wait(self, ticket: int) -> bool:
        """Whether a row being read will soon hold much more of the ticket's prompt than any row holds now."""
        row = self._rows[self.row_of(ticket)]
        others = [self._rows[index] for index in self.rows_of(Place.PREFILLING)]
        wanted = {id(cache) for cache in row.wanted}
        older = [
            other
            for other in others
            if other.ticket is not None and other.ticket < ticket and wanted <= {id(cache) for cache in other.wanted}
        ]
        promised = max((_shared(row.prompt, other.prompt) for other in older), default=0)
        if promised < LEAST_SHARED:
            return False
        _, available = self._find_source(row.prompt, row.wanted, range(len(self._rows)))
        return promised - available >= LEAST_SHARED

    def begin(self, ticket: int, states: Sequence[RowState]) -> int:
        """Start with a ticket's prompt; returns how many of its tokens were cached already.

        Args:
            ticket: Owner of a row whose prompt has not begun.
            states: What its decoder keeps of every row.
        """
        index = self.row_of(ticket)
        row = self._rows[index]
        caches = row.wanted
        source, count = self._find_source(row.prompt, caches, range(len(self._rows)), favourite=index)
        if count and source != index:
            for cache in caches:
                cache.copy_row(source, index, count)
        for state in states:
            state.begin_row(index, row.prompt, count)
        row.caches, row.has_begun = caches, True
        row.tokens, row.num_cached = list(row.prompt[:count]), count
        return count

    def move(self, ticket: int, block: Hashable) -> None:
        """Put a ticket's row into another block."""
        self._seating.transfer(self.row_of(ticket), block)

    def leave(self, ticket: int) -> None:
        """Free a ticket's row; its text stays until somebody takes the row."""
        row = self._rows[self._seating.transfer(self.row_of(ticket), Place.FREE)]
        row.ticket, row.prompt = None, ()
        # A free row may pad a batch, which writes behind the last token but one.
        row.num_cached = min(row.num_cached, max(len(row.tokens) - 2, 0))
        row.last_used = self._tick()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _find_source(
        self, prompt: Sequence[int], caches: Sequence[RowState], rows: Sequence[int], favourite: int = -1
    ) -> tuple[int, int]:
        """The row whose keys serve the longest beginning of a prompt, and its length; of equals the favourite."""
        wanted = {id(cache) for cache in caches}
        best, most = favourite, (0, False)
        for index in rows:
            row = self._rows[index]
            if wanted <= {id(cache) for cache in row.caches}:
                count = min(_shared(prompt, row.tokens), row.num_cached, len(prompt) - 1)
                if (count, index == favourite) > most:
                    best, most = index, (count, index == favourite)
        return best, most[0]

    def _swap(self, first: int, second: int) -> None:
        here, there = self._rows[first], self._rows[second]
        caches = {id(cache): cache for cache in (*here.caches, *there.caches)}
        for cache in caches.values():
            cache.swap_rows(first, second, max(len(here.tokens), len(there.tokens)))
        self._rows[first], self._rows[second] = there, here


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Leading tokens that two texts share; a few comparisons of slices."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
