"""RAPL counters of CPU packages and DRAM, read from the powercap folder of Linux."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtad.energy.backends import CounterBackend
from mtad.energy.readings import CPU_PACKAGE, DRAM
from mtad.energy.sampling import BackgroundSampler
from mtad.errors import EnergyError

POWERCAP = Path("/sys/class/powercap")
NO_DRAM = "this processor has no RAPL counter for DRAM"
_ZONE = re.compile(r"intel-rapl:(\d+)(?::\d+)?")
"""Zones of the MSR driver, AMD's too; `intel-rapl-mmio` would count the same packages again."""
_MOST_WATTS = 1000.0
"""No zone takes more: it says how soon a counter may wrap."""
_LONGEST_INTERVAL_S = 10.0


@dataclass(slots=True)
class RaplZone:
    """One counter.

    Attributes:
        path: The zone's folder.
        scope: `cpu_package` or `dram`.
        range_uj: Where the counter starts again from 0.
        last_uj: What it said when it was last read.
        total_uj: Microjoules since the first reading, wraparounds included.
    """

    path: Path
    scope: str
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def advance(self) -> None:
        """Read the counter; it has wrapped once at most since the last time."""
        now = read_counter(self.path / "energy_uj")
        step = now - self.last_uj
        self.total_uj += step if step >= 0 else step + self.range_uj
        self.last_uj = now


class RaplBackend(CounterBackend):
    """Packages and DRAM, each summed over the machine.

    A thread reads the counters often enough that no wraparound is missed.

    Args:
        zones: At least one.
        missing: Why a scope has no zone, by scope.
    """

    name = "rapl"
    resolution_s = 0.001

    def __init__(self, zones: Sequence[RaplZone], missing: dict[str, str]) -> None:
        self._zones = list(zones)
        self._lock = threading.Lock()
        self._failure: EnergyError | None = None
        self.missing = missing
        self.scopes = tuple(dict.fromkeys(zone.scope for zone in zones))
        shortest_s = min(zone.range_uj for zone in zones) / 1e6 / _MOST_WATTS
        self.interval_s = min(shortest_s / 4, _LONGEST_INTERVAL_S)
        self._sampler = BackgroundSampler(self._poll, self.interval_s)

    def read(self) -> dict[str, float]:
        """See `CounterBackend.read`."""
        with self._lock:
            self._advance()
            if self._failure is not None:
                raise self._failure
            totals = dict.fromkeys(self.scopes, 0.0)
            for zone in self._zones:
                totals[zone.scope] += zone.total_uj / 1e6
            return totals

    def close(self) -> None:
        """See `Backend.close`."""
        self._sampler.close()

    def _poll(self) -> None:
        with self._lock:
            self._advance()

    def _advance(self) -> None:
        """Read all zones; a failure stays, since a wraparound may have been missed meanwhile."""
        if self._failure is not None:
            return
        try:
            for zone in self._zones:
                zone.advance()
        except EnergyError as error:
            self._failure = error


def open_rapl(root: Path = POWERCAP) -> RaplBackend:
    """The counters of this machine.

    Args:
        root: The powercap folder.

    Raises:
        EnergyError: There are none, or they may not be read; says how to allow it.
    """
    folders = find_zones(root)
    zones = []
    for folder, scope in folders.items():
        zones.append(
            RaplZone(
                path=folder,
                scope=scope,
                range_uj=max(read_counter(folder / "max_energy_range_uj"), 1),
                last_uj=read_counter(folder / "energy_uj"),
            )
        )
    has_dram = DRAM in folders.values()
    return RaplBackend(zones, {} if has_dram else {DRAM: NO_DRAM})


def find_zones(root: Path = POWERCAP) -> dict[Path, str]:
    """Folders of packages and their DRAM with their scope, in order.

    Cores are inside packages, and `psys` holds them all: neither is counted again.

    Raises:
        EnergyError: There is no such folder, or no package in it.
    """
    if not root.is_dir():
        raise EnergyError(
            f"there is no {root}: no RAPL counters here, as in most virtual machines and containers; "
            "run on the machine itself"
        )
    found = {}
    for folder in sorted(root.iterdir()):
        scope = _scope_of(folder) if _ZONE.fullmatch(folder.name) else None
        if scope is not None:
            found[folder] = scope
    if CPU_PACKAGE not in found.values():
        raise EnergyError(f"there is no RAPL package in {root}; load the module intel_rapl_msr, where there is one")
    return found


def package_numbers(root: Path = POWERCAP) -> list[int]:
    """Numbers N of the zones `intel-rapl:N` that are packages; empty where there are none."""
    try:
        zones = find_zones(root)
    except EnergyError:
        return []
    matches = [_ZONE.fullmatch(folder.name) for folder, scope in zones.items() if scope == CPU_PACKAGE]
    return [int(match[1]) for match in matches if match is not None]


def read_counter(path: Path) -> int:
    """The number in a file of sysfs.

    Raises:
        EnergyError: It may not be read, has vanished, or holds no number.
    """
    try:
        return int(path.read_text(encoding="ascii"))
    except PermissionError as error:
        raise EnergyError(
            f"{path} may not be read; allow it with: sudo chmod a+r {path.parent.parent}/intel-rapl:*/energy_uj "
            "(until the next start; docs/energy.md has a rule that lasts)"
        ) from error
    except FileNotFoundError as error:
        raise EnergyError(f"{path} has vanished; was the module intel_rapl_msr unloaded?") from error
    except (OSError, ValueError) as error:
        raise EnergyError(f"{path} cannot be read ({error}); expected a whole number") from error


def _scope_of(folder: Path) -> str | None:
    try:
        name = (folder / "name").read_text(encoding="ascii").strip()
    except OSError:
        return None
    if name.startswith("package"):
        return CPU_PACKAGE
    return DRAM if name == "dram" else None
