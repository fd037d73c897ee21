"""What an iteration takes by the depth of its draft, measured as decoding goes on."""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

_SAMPLES = 5


@dataclass(slots=True)
class _BatchCosts:
    """Seconds by depth for one number of rows: what was measured, and what is carried over from another number."""

    samples: dict[int, deque[float]] = field(default_factory=dict)
    guesses: dict[int, float] = field(default_factory=dict)


class IterationCosts:
    """Seconds of an iteration by depth of the draft, 0 for none, and number of rows.

    The first iteration of every shape warms things up and is not counted; the median of the last few counts. Another
    number of rows begins with the figures of the last one, which its first measurement scales.

    Args:
        gamma: Greatest depth.
    """

    def __init__(self, gamma: int) -> None:
        self._gamma = gamma
        self._by_rows: dict[int, _BatchCosts] = {}
        self._here = _BatchCosts()

    def use(self, num_rows: int) -> None:
        """Turn to iterations of so many rows."""
        if num_rows not in self._by_rows:
            known = {depth: self.cost(depth) for depth in (*self._here.guesses, *self._here.samples)}
            guesses = {depth: cost for depth, cost in known.items() if cost is not None}
            self._by_rows[num_rows] = _BatchCosts(guesses=guesses)
        self._here = self._by_rows[num_rows]

    def add(self, depth: int, seconds: float) -> bool:
        """Count an iteration; returns whether it was measured."""
        here = self._here
        if depth not in here.samples:
            here.samples[depth] = deque(maxlen=_SAMPLES)
            return False
        if not here.samples[depth] and here.guesses.get(depth):
            scale = seconds / here.guesses[depth]
            here.guesses = {other: scale * guess for other, guess in here.guesses.items()}
        here.samples[depth].append(seconds)
        return True

    def cost(self, depth: int) -> float | None:
        """Seconds of an iteration; between none and the greatest depth a straight line, None where nothing is known."""
        if self._here.samples.get(depth):
            return median(self._here.samples[depth])
        if depth in self._here.guesses:
            return self._here.guesses[depth]
        if depth in (0, self._gamma):
            return None
        least, most = self.cost(0), self.cost(self._gamma)
        return None if least is None or most is None else least + (most - least) * depth / self._gamma
