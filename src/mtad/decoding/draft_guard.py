"""Keeps speculative decoding from being slower than single-token decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from mtad.decoding.iteration_costs import IterationCosts
from mtad.decoding.kept_levels import KeptLevels
from mtad.decoding.outcome import RowOutcome
from mtad.structures.rows import RowControls

Clock = Callable[[], float]
"""Seconds since any fixed moment."""

TRIAL = 3
"""Drafts at full depth before the first decision, and whenever a draft that was shortened is tried again."""
PROBE_EVERY = 128
"""Drafted iterations after which one without a draft is measured again."""
PROBING_SHARE = 0.03
"""Time that trials may lose, as a share of the time without them."""
_LEAST_WAIT = 32
_PATIENCE = 2.0
_MOST_PROBES = 8
_MARGIN = 1.03
"""How much faster a shallower draft must be expected to be."""
_FORGOTTEN = 0.75
_START = 0.6


class _Phase(Enum):
    TRIAL = "trial"
    STEADY = "steady"
    PROBE = "probe"


@dataclass(slots=True)
class _Account:
    """Time against tokens since a trial began, and time since it ended; tokens are those of an average row."""

    seconds: float = 0.0
    tokens: float = 0.0
    seconds_since: float = 0.0
    steps_since: int = 0


class DraftGuard:
    """Shortens the draft of a batch, or leaves it out, where that is expected to emit more tokens a second.

    An iteration has one shape for all rows, so a row that drafts less saves nothing by itself: the depth is that of the
    batch, chosen by what every row kept. With E_r(d) the tokens that row r is expected to emit with a draft of d levels
    and c(d) the seconds of such an iteration, it maximises sum_r E_r(d) / c(d). Only a few depths are used, so that
    there are few shapes. Decoding begins with the draft; an iteration without one is measured soon and then now and
    again; a draft that was shortened is tried again at full depth once the trials have lost at most
    `PROBING_SHARE` of the time. The next answer begins where the last one ended: at full depth, or, where that did not
    pay, as deep as was best, its trials booked with those before.

    Lossless rules stay lossless: the depth is fixed before the iteration's first draw, by what earlier iterations
    emitted and how long they took. Given that past, an iteration of any depth emits tokens of the target's law, and its
    draws are fresh, for they are numbered by the position, which no other iteration begins at. A depth chosen by the
    draft at hand would break this. The joint rule's bound holds for every block that is drafted, and a block of one
    token is the target's own. What is chosen depends on the clock, so text cannot be repeated by its seed.

    Args:
        depths: Depths to choose from, rising, from 0 to that of the drafter.
        clock: Gives the time of iterations.

    Attributes:
        depth: Depth of the next iteration, 0 for none.
    """

    needs_host = False

    def __init__(self, depths: Sequence[int], clock: Clock) -> None:
        self.clock = clock
        self.depth = self.gamma = depths[-1]
        self._depths = tuple(depths)
        self._costs = IterationCosts(self.gamma)
        self._all_rows = KeptLevels([_START] * self.gamma)
        self._rows: list[KeptLevels] = []
        self._heard: tuple[int, float | None] = (self.gamma, None)
        self._phase = _Phase.TRIAL
        self._trials_left = TRIAL
        self._probes_left = 0
        self._has_probed = False
        self._since_probe = 0
        self._usual = self.gamma
        self._account = _Account()

    def start(self, num_rows: int) -> None:
        """See `RowPolicy.start`; what was measured and decided before is kept."""
        self._rows = []
        self.add_rows(num_rows)
        if self._usual == self.gamma:
            self._begin_trial()
        elif self._has_paid_for_trials(1):
            self._try_again()
        else:
            self._phase, self.depth = _Phase.STEADY, self._usual

    def add_rows(self, count: int) -> None:
        """See `RowPolicy.add_rows`; they begin with what all rows kept so far."""
        self._rows += [self._all_rows.heir() for _ in range(count)]

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `RowPolicy.select_rows`."""
        self._rows = [self._rows[row] for row in rows]

    def apply(self, rows: RowControls) -> RowControls:
        """See `RowPolicy.apply`; without a draft there is nothing to limit."""
        if self.depth in (0, self.gamma):
            return rows
        limits = rows.depth_limits.clamp(max=self.depth)
        return replace(
            rows,
            depth_limits=limits,
            deepest=min(rows.deepest, self.depth),
            shallowest=min(rows.shallowest, self.depth),
        )

    def hear_time(self, depth: int, seconds: float | None) -> None:
        """Hear which iteration the next `note` is about.

        Args:
            depth: Its depth.
            seconds: What it took; None where that was not measured, or would mislead.
        """
        self._heard = depth, seconds

    def hear_catching_up(self, seconds: float) -> None:
        """Hear what it took to let the draft read what it had missed."""
        self._account.seconds += seconds

    def note(self, outcomes: Sequence[RowOutcome | None]) -> None:
        """See `RowPolicy.note`."""
        depth, seconds = self._heard
        brought = [(row, outcome) for row, outcome in enumerate(outcomes) if outcome is not None]
        if not brought:
            return
        for row, outcome in brought:
            if depth:
                self._rows[row].add(outcome.num_drafted, depth)
                self._all_rows.add(outcome.num_drafted, depth)
        self._costs.use(len(outcomes))
        is_measured = seconds is not None and self._costs.add(depth, seconds)
        self._book(depth, seconds or 0.0, sum(len(outcome.tokens) for _, outcome in brought) / len(brought))
        self.depth = self._next_depth(depth, [row for row, _ in brought], is_measured=is_measured)

    def _book(self, depth: int, seconds: float, tokens: float) -> None:
        account = self._account
        if self._phase is _Phase.TRIAL or self._usual == self.gamma:
            account.seconds += seconds
            account.tokens += tokens
        else:
            account.seconds_since += seconds
            account.steps_since += 1
        self._since_probe = 0 if depth == 0 else self._since_probe + 1
        self._probes_left -= depth == 0

    def _next_depth(self, depth: int, rows: Sequence[int], *, is_measured: bool) -> int:
        if self._phase is _Phase.TRIAL:
            self._trials_left -= depth == self.gamma
            if self._trials_left > 0:
                return self.gamma
            self._phase = _Phase.STEADY
        if self._phase is _Phase.PROBE:
            if self._probes_left > 0 and not (depth == 0 and is_measured):
                return 0
            self._phase = _Phase.STEADY
        elif self._is_probe_due():
            return self._begin_probe()
        self._usual = self._best_depth(rows)
        if self._usual < self.gamma and self._is_trial_due():
            self._try_again()
        return self._usual

    def _is_probe_due(self) -> bool:
        """Whether an iteration without a draft is to be measured; a clock that stands still measures nothing."""
        if not self._costs.cost(self.gamma):
            return False
        return not self._has_probed or (self._usual > 0 and self._since_probe >= PROBE_EVERY)

    def _begin_probe(self) -> int:
        self._phase, self._probes_left, self._has_probed = _Phase.PROBE, _MOST_PROBES, True
        if self._since_probe >= PROBE_EVERY and self._usual == self.gamma:
            # What the last trial lost or gained is long ago.
            self._account = _Account()
        return 0

    def _is_trial_due(self) -> bool:
        """Within an answer the time is let run on for longer: the next answer may be of another kind."""
        return self._account.steps_since >= _LEAST_WAIT and self._has_paid_for_trials(_PATIENCE)

    def _has_paid_for_trials(self, times: float) -> bool:
        """Whether what the last trial lost, so many times over, is a small enough share of the time since."""
        account, plain = self._account, self._costs.cost(0) or 0.0
        lost = account.seconds - account.tokens * plain
        return account.seconds_since * PROBING_SHARE >= times * lost

    def _try_again(self) -> None:
        self._begin_trial()
        for row in self._rows:
            row.forget(_FORGOTTEN)

    def _begin_trial(self) -> None:
        self._phase = _Phase.TRIAL
        self._trials_left = TRIAL
        self._usual = self.depth = self.gamma
        self._since_probe = 0
        # A short answer may have ended before its plain steps were measured.
        self._has_probed = self._costs.cost(0) is not None
        self._account = _Account()

    def _best_depth(self, rows: Sequence[int]) -> int:
        """The fastest depth not above the usual one, which must be beaten clearly; the usual one where costs lack."""
        costs = {depth: self._costs.cost(depth) for depth in self._depths if depth <= self._usual}
        expected = [self._rows[row].expected_tokens() for row in rows]

        def speed(depth: int) -> float:
            cost = costs[depth]
            return sum(tokens[depth] for tokens in expected) / cost if cost else 0.0

        best = max(costs, key=speed)
        return best if speed(best) > _MARGIN * speed(self._usual) > 0 else self._usual


def depths_to_choose_from(gamma: int, *, shrinks: bool) -> tuple[int, ...]:
    """No draft, powers of two below `gamma`, and `gamma`; none between where a drafter cannot make shallower trees."""
    powers = [1 << power for power in range(gamma.bit_length()) if 1 << power < gamma]
    return (0, *(powers if shrinks else ()), gamma)
