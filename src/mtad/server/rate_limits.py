"""How much a client may ask for in a minute."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

_MANY_CLIENTS = 1024


@dataclass(slots=True)
class TokenBucket:
    """Fills evenly up to what a minute brings, so that a pause can be made up for; may be overdrawn.

    Attributes:
        per_minute: What a minute brings.
        level: What is there at `seen`.
        seen: Seconds of the clock.
    """

    per_minute: float
    level: float
    seen: float

    def wait(self, amount: float, now: float) -> float:
        """Seconds until an amount is there; more than the bucket holds is there once it is full."""
        self._fill(now)
        # A full bucket may miss its mark by rounding.
        missing = min(amount, self.per_minute) - self.level - 1e-9
        return max(missing, 0.0) * 60 / self.per_minute

    def take(self, amount: float, now: float) -> None:
        """Take an amount, whether it is there or not."""
        self._fill(now)
        self.level -= amount

    def is_full(self, now: float) -> bool:
        """Whether forgetting the bucket would change nothing."""
        self._fill(now)
        return self.level >= self.per_minute

    def _fill(self, now: float) -> None:
        self.level = min(self.level + (now - self.seen) * self.per_minute / 60, self.per_minute)
        self.seen = now


class RateLimit:
    """A bucket for every client.

    Args:
        per_minute: What each may take in a minute; None lets everybody take everything.
        clock: Seconds.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: dict[str, TokenBucket] = {}

    def wait(self, client: str, amount: float) -> float:
        """Seconds until a client may take an amount."""
        return 0.0 if self._per_minute is None else self._bucket(client).wait(amount, self._clock())

    def take(self, client: str, amount: float) -> None:
        """Take an amount; a client in debt waits until it is paid."""
        if self._per_minute is not None:
            self._bucket(client).take(amount, self._clock())

    def _bucket(self, client: str) -> TokenBucket:
        assert self._per_minute is not None
        now = self._clock()
        if client not in self._buckets and len(self._buckets) >= _MANY_CLIENTS:
            self._buckets = {name: item for name, item in self._buckets.items() if not item.is_full(now)}
        return self._buckets.setdefault(client, TokenBucket(self._per_minute, self._per_minute, now))
