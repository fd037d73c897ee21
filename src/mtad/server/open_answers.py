"""How many answers run or wait, and whose they are."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class OpenAnswers:
    """Counts answers by client.

    Args:
        limit: Answers from which on only clients with less than an equal share get more, and none beyond twice as many.

    Attributes:
        total: Answers of all clients.
    """

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._limit = limit
        self._by_client: Counter[str] = Counter()

    def has_room(self, client: str, count: int) -> bool:
        """Whether a client can have so many more."""
        if self.total + count <= self._limit:
            return True
        others = len(self._by_client.keys() - {client})
        share = max(self._limit // (others + 1), 1)
        return self._by_client[client] + count <= share and self.total + count <= 2 * self._limit

    @contextmanager
    def hold(self, client: str, count: int) -> Iterator[None]:
        """So many answers are open."""
        self.total += count
        self._by_client[client] += count
        try:
            yield
        finally:
            self.total -= count
            self._by_client[client] -= count
            if not self._by_client[client]:
                del self._by_client[client]
