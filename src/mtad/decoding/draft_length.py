"""How deep each row drafts: as deep as its own acceptance pays for."""

from collections.abc import Sequence

from mtad.decoding.outcome import RowOutcome
from mtad.structures.rows import RowControls

_START = 0.8
_MEMORY = 0.9
_FORGETTING = 0.98


class AdaptiveLength:
    """Drafts to the depth of the most expected tokens per cost, judged by what each row kept before.

    A row remembers, for every depth, how often a draft kept to the depth above was kept one further (an exponential
    average over some ten drafts). With r_1, r_2, ... these rates and c the cost of a drafted level in calls of the
    target, the next depth k maximises (1 + r_1 + r_1 r_2 + ... + r_1 ... r_k) / (1 + c k): the speed-up of Leviathan et
    al. 2023 (theorem 3.8) with a rate per depth. Depths that were not drafted drift back to the
    optimistic start, so that a row tries them again. The limit depends on the row's own past alone: a row of a batch
    drafts as it would alone.

    Args:
        gamma: Greatest depth.
        level_cost: c above; above 0.
    """

    needs_host = True

    def __init__(self, gamma: int, level_cost: float) -> None:
        self.gamma = gamma
        self.level_cost = level_cost
        self._rates: list[list[float]] = []
        self._limits: list[int] = []

    def start(self, num_rows: int) -> None:
        """See `RowPolicy.start`."""
        self._rates, self._limits = [], []
        self.add_rows(num_rows)

    def add_rows(self, count: int) -> None:
        """See `RowPolicy.add_rows`."""
        self._rates += [[_START] * self.gamma for _ in range(count)]
        self._limits += [self._best_depth(rates) for rates in self._rates[len(self._limits) :]]

    def apply(self, rows: RowControls) -> RowControls:
        """See `RowPolicy.apply`."""
        return rows.limited(self._limits)

    def note(self, outcomes: Sequence[RowOutcome | None]) -> None:
        """See `RowPolicy.note`."""
        for row, outcome in enumerate(outcomes):
            if outcome is not None:
                offered = self.gamma if outcome.guarded_depth is None else outcome.guarded_depth
                self._update(self._rates[row], outcome.num_drafted, min(self._limits[row], offered))
                self._limits[row] = self._best_depth(self._rates[row])

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `RowPolicy.select_rows`."""
        self._rates = [self._rates[row] for row in rows]
        self._limits = [self._limits[row] for row in rows]

    def _update(self, rates: list[float], kept: int, limit: int) -> None:
        for level in range(self.gamma):
            if level <= kept and level < limit:
                rates[level] = _MEMORY * rates[level] + (1 - _MEMORY) * (kept > level)
            else:
                rates[level] = _FORGETTING * rates[level] + (1 - _FORGETTING) * _START

    def _best_depth(self, rates: Sequence[float]) -> int:
        best, best_speed = 1, 0.0
        reached = expected = 1.0
        for depth, rate in enumerate(rates, start=1):
            reached *= rate
            expected += reached
            speed = expected / (1 + self.level_cost * depth)
            if speed > best_speed:
                best, best_speed = depth, speed
        return best
