"""Counters from a file, for tests and demonstrations; what they say is never a measurement of the run at hand."""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from mtad.energy.backends import CounterBackend
from mtad.energy.readings import SCOPES
from mtad.errors import EnergyError

_NOT_COUNTED = "the recording has no such counter"


class ReplayBackend(CounterBackend):
    """Says at every moment what the recording said so many seconds after its beginning.

    Behind its end the recording begins again, on top of what it has counted.

    Args:
        seconds: Moments of the samples, from 0 upwards, at least two.
        joules: What the counters said then, by scope, `[samples]` each; never falling.
        clock: Seconds by a monotonic clock.
    """

    name = "replay"
    is_recording = True

    def __init__(
        self, seconds: Sequence[float], joules: dict[str, Sequence[float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.scopes = tuple(scope for scope in SCOPES if scope in joules)
        self.missing = {scope: _NOT_COUNTED for scope in SCOPES if scope not in joules}
        self.resolution_s = max(later - before for before, later in pairwise(seconds))
        self._seconds = list(seconds)
        self._joules = joules
        self._clock = clock
        self._started = clock()

    def read(self) -> dict[str, float]:
        """See `CounterBackend.read`."""
        turns, rest = divmod(self._clock() - self._started, self._seconds[-1])
        place = bisect_right(self._seconds, rest) - 1
        found = {}
        for scope in self.scopes:
            values = self._joules[scope]
            found[scope] = values[place] - values[0] + turns * (values[-1] - values[0])
        return found


def open_replay(path: Path) -> ReplayBackend:
    """The recording of a JSON file: `{"seconds": [0, ...], "joules": {"gpu": [...], ...}}`.

    Raises:
        EnergyError: The file cannot be read or is no recording.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnergyError(f"recording {path} cannot be read ({error}); name a JSON file") from error
    seconds, joules = _parts(document)
    if seconds is None or joules is None:
        raise EnergyError(
            f"{path} is no recording of a counter; expected seconds that rise from 0, two at least, and joules that "
            f"never fall, as many, for {', '.join(SCOPES)} or some of them"
        )
    return ReplayBackend(seconds, joules)


def _parts(document: Any) -> tuple[list[float] | None, dict[str, Sequence[float]] | None]:
    if not isinstance(document, dict):
        return None, None
    seconds, joules = document.get("seconds"), document.get("joules")
    if not _rises(seconds, strictly=True) or len(seconds) < 2 or seconds[0] != 0:
        return None, None
    if not isinstance(joules, dict) or not joules or not set(joules) <= set(SCOPES):
        return None, None
    if not all(_rises(values) and len(values) == len(seconds) for values in joules.values()):
        return None, None
    return seconds, joules


def _rises(values: Any, *, strictly: bool = False) -> TypeGuard[list[float]]:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return False
    pairs = pairwise(values)
    return all(later > before or (later == before and not strictly) for before, later in pairs)
