"""What a meter says of a window: joules by scope, or why there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GPU = "gpu"
CPU_PACKAGE = "cpu_package"
DRAM = "dram"
SCOPES = (GPU, CPU_PACKAGE, DRAM)
SCOPE_NAMES = {GPU: "GPU", CPU_PACKAGE: "CPU package", DRAM: "DRAM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReading:
    """One window.

    Attributes:
        backend: Where the joules come from, such as `nvml+rapl`; `none` without a counter.
        seconds: Length of the window by a monotonic clock.
        joules: Joules by scope, idle power included; scopes without a measurement are not in it.
        idle_watts: Power by scope of the machine at rest, as it was measured before; empty where it was not.
        not_measured: Why a scope has no joules, by scope.
        is_recording: Whether the joules are a recording's and not of this window.
    """

    backend: str
    seconds: float
    joules: Mapping[str, float] = field(default_factory=dict)
    idle_watts: Mapping[str, float] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)
    is_recording: bool = False

    @property
    def total_joules(self) -> float | None:
        """Joules of all measured scopes together; None where there are none."""
        return sum(self.joules.values()) if self.joules else None

    @property
    def net_joules(self) -> float | None:
        """The same without what the machine at rest takes; None where idle power of a measured scope is not known."""
        if not self.joules or any(scope not in self.idle_watts for scope in self.joules):
            return None
        return sum(joules - self.idle_watts[scope] * self.seconds for scope, joules in self.joules.items())

    @property
    def reason(self) -> str | None:
        """Why nothing was measured, in one line; None where something was."""
        return None if self.joules else join_reasons(self.not_measured)


def name_scopes(scopes: Sequence[str]) -> str:
    """Scopes for people: `GPU + CPU package`."""
    return " + ".join(SCOPE_NAMES[scope] for scope in SCOPES if scope in scopes)


def join_reasons(reasons: Mapping[str, str]) -> str:
    """Reasons by scope in one line, each once: `GPU: ...; CPU package, DRAM: ...`."""
    found: dict[str, list[str]] = {}
    for scope in SCOPES:
        if scope in reasons:
            found.setdefault(reasons[scope], []).append(SCOPE_NAMES[scope])
    if len(found) == 1 and len(reasons) == len(SCOPES):
        return next(iter(found))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in found.items())
