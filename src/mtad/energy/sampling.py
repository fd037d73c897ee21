"""Something done again and again in the background, without drift."""

import threading
import time
from collections.abc import Callable


def next_deadline(deadline: float, interval_s: float, now: float) -> float:
    """The first moment after `now` on the grid of `deadline` plus whole intervals."""
    missed = max(int((now - deadline) // interval_s), 0)
    return deadline + (missed + 1) * interval_s


class BackgroundSampler:
    """Calls `work` every `interval_s` seconds on a thread of its own, until closed.

    Moments lie on a fixed grid: a late call does not move the ones after it.

    Args:
        work: Must not raise.
        interval_s: Seconds between two calls.
    """

    def __init__(self, work: Callable[[], None], interval_s: float) -> None:
        self._work = work
        self._interval_s = interval_s
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mtad energy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop and wait for the thread; may be called again."""
        self._is_closed.set()
        self._thread.join()

    def _run(self) -> None:
        deadline = time.monotonic() + self._interval_s
        while not self._is_closed.wait(max(deadline - time.monotonic(), 0.0)):
            self._work()
            deadline = next_deadline(deadline, self._interval_s, time.monotonic())
