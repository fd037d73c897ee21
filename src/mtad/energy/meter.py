"""Joules over windows, from whichever counters there are, or why there are none."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mtad.energy.backends import Backend
from mtad.energy.readings import SCOPES, EnergyReading, join_reasons, name_scopes
from mtad.errors import EnergyError

MINIMUM_WINDOW_S = 2.0
"""A shorter window has no joules: counters tick too seldom for it."""


@dataclass(slots=True)
class Window:
    """A window that may still be open; its reading is there once it is closed."""

    reading: EnergyReading | None = None


class EnergyMeter:
    """Measures windows, which may overlap; not thread-safe.

    Args:
        backends: Where joules come from, each scope from one at most; none measures seconds alone.
        missing: Why scopes are not measured, by scope.
        minimum_s: Windows that are shorter have no joules.
        synchronize: Waits until the device has done what it was told; called at both ends of a window.
        clock: Seconds by a monotonic clock.

    Attributes:
        idle_watts: Power at rest by scope, once `measure_idle` has been called.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        missing: Mapping[str, str] | None = None,
        *,
        minimum_s: float | None = None,
        synchronize: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backends = list(backends)
        self._missing = dict(missing or {})
        self.minimum_s = MINIMUM_WINDOW_S if minimum_s is None else minimum_s
        self.synchronize = synchronize
        self._clock = clock
        self.idle_watts: dict[str, float] = {}
        self._total: dict[str, float] = {}
        self._marks: list[Any] | None = None

    @property
    def name(self) -> str:
        """The backends: `zeus`, `nvml+rapl`, or `none`."""
        return "+".join(backend.name for backend in self._backends) or "none"

    @property
    def scopes(self) -> tuple[str, ...]:
        """What is measured, of `SCOPES`."""
        found = [scope for backend in self._backends for scope in backend.scopes]
        return tuple(scope for scope in SCOPES if scope in found)

    @property
    def not_measured(self) -> dict[str, str]:
        """Why other scopes are not, by scope."""
        reasons = self._missing | {key: text for item in self._backends for key, text in item.missing.items()}
        return {scope: reasons[scope] for scope in SCOPES if scope in reasons and scope not in self.scopes}

    @property
    def is_recording(self) -> bool:
        """Whether joules are a recording's."""
        return any(backend.is_recording for backend in self._backends)

    @property
    def resolution_s(self) -> float:
        """Seconds by which a window's borders may be off."""
        return max((backend.resolution_s for backend in self._backends), default=0.0)

    def describe(self) -> str:
        """The meter in one line: backend and scope, or why nothing is measured."""
        if not self.scopes:
            return f"energy: not measured: {join_reasons(self.not_measured)}"
        kind = "replayed from a recording, not of this run" if self.is_recording else f"by {self.name}"
        rest = join_reasons(self.not_measured)
        return f"energy of {name_scopes(self.scopes)}, {kind}" + (f" (not measured: {rest})" if rest else "")

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Measure a block; windows may lie in one another."""
        window = Window()
        self._wait()
        marks = self._begin()
        started = self._clock()
        try:
            yield window
        finally:
            self._wait()
            seconds = self._clock() - started
            window.reading = self._close(marks, seconds)

    def measure(self, work: Callable[[], object], least_s: float | None = None) -> tuple[EnergyReading, int]:
        """Repeat work in one window until it is long enough; returns the reading and how often the work was done.

        Args:
            work: Called at least once.
            least_s: Seconds that the window takes at least; the meter's own minimum where it is None.
        """
        least_s = self.minimum_s if least_s is None else least_s
        count = 0
        with self.window() as window:
            started = self._clock()
            while count == 0 or self._clock() - started < least_s:
                work()
                self._wait()
                count += 1
        assert window.reading is not None
        return window.reading, count

    def measure_idle(self, seconds: float | None = None, sleep: Callable[[float], None] = time.sleep) -> EnergyReading:
        """Measure the machine at rest; later readings then know what is left without it.

        Args:
            seconds: Length of the window; the meter's minimum where it is None.
            sleep: Waits.
        """
        with self.window() as window:
            sleep(self.minimum_s if seconds is None else seconds)
        reading = window.reading
        assert reading is not None
        self.idle_watts = {scope: joules / reading.seconds for scope, joules in reading.joules.items()}
        return reading

    def counter(self) -> dict[str, float]:
        """Joules by scope since the first call, which gives zeros; never falls, and lacks scopes that failed."""
        marks = self._begin()
        if self._marks is None:
            self._total = dict.fromkeys(self.scopes, 0.0)
        else:
            joules, failed = self._end(self._marks)
            self._total = {
                scope: total + joules.get(scope, 0.0) for scope, total in self._total.items() if scope not in failed
            }
        self._marks = marks
        return dict(self._total)

    def close(self) -> None:
        """Give back what the backends hold; may be called again."""
        for backend in self._backends:
            backend.close()

    def _wait(self) -> None:
        if self.synchronize is not None:
            self.synchronize()

    def _begin(self) -> list[Any]:
        """A mark of every backend, or the error that it gave."""
        marks: list[Any] = []
        for backend in self._backends:
            try:
                marks.append(backend.begin())
            except EnergyError as error:
                marks.append(error)
        return marks

    def _end(self, marks: Sequence[Any]) -> tuple[dict[str, float], dict[str, str]]:
        """Joules by scope, and why others have none."""
        joules: dict[str, float] = {}
        failed: dict[str, str] = {}
        for backend, mark in zip(self._backends, marks, strict=True):
            try:
                if isinstance(mark, EnergyError):
                    raise mark
                joules |= backend.end(mark)
            except EnergyError as error:
                failed |= dict.fromkeys(backend.scopes, str(error))
        return joules, failed

    def _close(self, marks: Sequence[Any], seconds: float) -> EnergyReading:
        joules, failed = self._end(marks)
        if seconds < self.minimum_s:
            reason = f"the window took {seconds:.2f} s, expected at least {self.minimum_s:g} s; repeat the work"
            failed, joules = failed | dict.fromkeys(joules, reason), {}
        for scope in [scope for scope, value in joules.items() if value == 0]:
            failed[scope] = f"the counter did not move in {seconds:.1f} s"
            del joules[scope]
        return EnergyReading(
            backend=self.name,
            seconds=seconds,
            joules=joules,
            idle_watts=dict(self.idle_watts),
            not_measured=self.not_measured | failed,
            is_recording=self.is_recording,
        )
