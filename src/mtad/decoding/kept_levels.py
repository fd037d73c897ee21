"""How often a row keeps each level of its drafts."""

from collections.abc import Sequence

_MEMORY = 0.96
_PRIOR_WEIGHT = 2.0
_MOST_INHERITED = 4.0
_LEAST_WEIGHT = 0.5


class KeptLevels:
    """Rates of one row: of the drafts that were kept to the level above, how many were kept to this one.

    An exponential average over some 25 drafts, which begins at a prior and forgets it likewise.

    Args:
        prior: Rates to begin with, one a level.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self._kept = [_PRIOR_WEIGHT * rate for rate in prior]
        self._tried = [_PRIOR_WEIGHT for _ in prior]

    def heir(self) -> "KeptLevels":
        """A row that begins with these rates, which weigh no more than a few drafts of its own."""
        found = KeptLevels(self.rates)
        found._tried = [min(max(tried, _PRIOR_WEIGHT), _MOST_INHERITED) for tried in self._tried]
        found._kept = [rate * tried for rate, tried in zip(self.rates, found._tried, strict=True)]
        return found

    def add(self, num_kept: int, depth: int) -> None:
        """Count a draft of `depth` levels, of which `num_kept` were kept."""
        for level in range(min(depth, num_kept + 1)):
            self._kept[level] = _MEMORY * self._kept[level] + (num_kept > level)
            self._tried[level] = _MEMORY * self._tried[level] + 1

    def forget(self, share: float) -> None:
        """Let the past weigh less by this share, so that the next drafts weigh more."""
        for level, tried in enumerate(self._tried):
            # Levels that are never reached keep their rate.
            if tried > _LEAST_WEIGHT:
                self._kept[level] *= 1 - share
                self._tried[level] *= 1 - share

    @property
    def rates(self) -> list[float]:
        """The rates of all levels, each in [0, 1]."""
        return [kept / tried for kept, tried in zip(self._kept, self._tried, strict=True)]

    def expected_tokens(self) -> list[float]:
        """Tokens that an iteration is expected to emit, for drafts of 0, 1, ... levels."""
        expected, reached = [1.0], 1.0
        for rate in self.rates:
            reached *= rate
            expected.append(expected[-1] + reached)
        return expected
