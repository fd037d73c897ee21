"""Waiting in turns: a client with many requests is served as often as one with few."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served within a client; clients take turns. Not thread-safe."""

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Item]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, client: str, item: Item) -> None:
        """Put an item behind its client's others; a client who had none is the last in turn."""
        self._by_client.setdefault(client, deque()).append(item)
        self._count += 1

    def take(self) -> Item:
        """The first item of the client whose turn it is; that client is the last in turn then.

        Raises:
            KeyError: Nothing waits.
        """
        client, items = self._by_client.popitem(last=False)
        item = items.popleft()
        if items:
            self._by_client[client] = items
        self._count -= 1
        return item

    def remove(self, client: str, item: Item) -> bool:
        """Take an item out; whether it was there."""
        items = self._by_client.get(client)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._by_client[client]
        self._count -= 1
        return True

    def clear(self) -> list[Item]:
        """Everything that waits; nothing does afterwards."""
        found = [self.take() for _ in range(self._count)]
        assert not self._by_client
        return found
