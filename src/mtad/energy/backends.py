"""What every source of joules has in common."""

from abc import ABC, abstractmethod
from typing import Any

from mtad.errors import EnergyError


class Backend(ABC):
    """Joules between two moments; windows may overlap.

    Attributes:
        name: As in `--meter`.
        scopes: What it counts, of `SCOPES`.
        missing: Why it does not count other scopes that it might, by scope.
        resolution_s: Seconds between two ticks of its counters at most: what a window's borders may be off by.
        is_recording: Whether its joules are a recording's and not this machine's.
    """

    name: str
    scopes: tuple[str, ...]
    missing: dict[str, str]
    resolution_s: float
    is_recording: bool = False

    @abstractmethod
    def begin(self) -> Any:
        """Open a window; what it returns closes it.

        Raises:
            EnergyError: A counter cannot be read.
        """

    @abstractmethod
    def end(self, mark: Any) -> dict[str, float]:
        """Joules by scope since `begin` gave the mark.

        Raises:
            EnergyError: A counter cannot be read, or has gone backwards.
        """

    def close(self) -> None:
        """Give back what the backend holds; may be called again."""
        return


class CounterBackend(Backend):
    """A backend whose counters are read at both ends of a window."""

    @abstractmethod
    def read(self) -> dict[str, float]:
        """Joules by scope since some moment that stays the same.

        Raises:
            EnergyError: A counter cannot be read.
        """

    def begin(self) -> dict[str, float]:
        """See `Backend.begin`."""
        return self.read()

    def end(self, mark: dict[str, float]) -> dict[str, float]:
        """See `Backend.end`."""
        now = self.read()
        for scope, before in mark.items():
            if now[scope] < before:
                raise EnergyError(f"the {self.name} counter went backwards; was its driver loaded again?")
        return {scope: now[scope] - before for scope, before in mark.items()}
