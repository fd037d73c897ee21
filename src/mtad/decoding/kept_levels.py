"""How often a row keeps each level of its drafts."""

from collections.abc import Sequence

_MEMORY = 0.96
_PRIOR_WEIGHT = 2.0


class KeptLevels:
    """Rates of one row: of the drafts that were kept to the level above, how many were kept to this one.

    An exponential average over some 25 drafts, which begins at a prior.

    Args:
        prior: Rates to begin with, one a level.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self._prior = list(prior)
        self._kept = [0.0] * len(prior)
        self._tried = [0.0] * len(prior)

    def add(self, num_kept: int, depth: int) -> None:
        """Count a draft of `depth` levels, of which `num_kept` were kept."""
        for level in range(min(depth, num_kept + 1)):
            self._kept[level] = _MEMORY * self._kept[level] + (num_kept > level)
            self._tried[level] = _MEMORY * self._tried[level] + 1

    def forget(self, share: float) -> None:
        """Let the past weigh less by this share, so that the next drafts weigh more."""
        self._kept = [(1 - share) * count for count in self._kept]
        self._tried = [(1 - share) * count for count in self._tried]

    @property
    def rates(self) -> list[float]:
        """The rates of all levels, each in [0, 1]."""
        columns = zip(self._kept, self._tried, self._prior, strict=True)
        return [(kept + _PRIOR_WEIGHT * prior) / (tried + _PRIOR_WEIGHT) for kept, tried, prior in columns]

    def expected_tokens(self) -> list[float]:
        """Tokens that an iteration is expected to emit, for drafts of 0, 1, ... levels."""
        expected, reached = [1.0], 1.0
        for rate in self.rates:
            reached *= rate
            expected.append(expected[-1] + reached)
        return expected
