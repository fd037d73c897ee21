"""Zeus: GPUs, CPU packages and DRAM by one monitor, whose windows may overlap."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mtad.energy.backends import Backend
from mtad.energy.rapl import NO_DRAM, POWERCAP, find_zones, package_numbers, read_counter
from mtad.energy.readings import CPU_PACKAGE, DRAM, GPU
from mtad.errors import EnergyError

_ZERO_WARNING = "The energy consumption of one or more GPUs was measured as zero"


class ZeusBackend(Backend):
    """A `ZeusMonitor`; the meter waits for the device itself, so zeus need not.

    Args:
        monitor: The monitor.
        error: Base class of zeus' own errors.
        missing: Why a scope is not counted, by scope.
    """

    name = "zeus"
    resolution_s = 0.1

    def __init__(self, monitor: Any, error: type[Exception], missing: dict[str, str]) -> None:
        self._monitor = monitor
        self._errors = (error, OSError, ValueError)
        self._num_windows = 0
        self.missing = missing
        scopes = [GPU] * bool(monitor.gpu_indices) + [CPU_PACKAGE] * bool(monitor.cpu_indices)
        if any(monitor.cpus.supports_get_dram_energy_consumption(index) for index in monitor.cpu_indices):
            scopes.append(DRAM)
        self.scopes = tuple(scopes)

    def begin(self) -> str:
        """See `Backend.begin`."""
        self._num_windows += 1
        key = f"mtad {self._num_windows}"
        try:
            self._monitor.begin_window(key, sync_execution=False)
        except self._errors as error:
            raise EnergyError(f"zeus cannot begin a window ({error})") from error
        return key

    def end(self, mark: str) -> dict[str, float]:
        """See `Backend.end`."""
        try:
            with warnings.catch_warnings():
                # The meter says the same of every counter that has not moved.
                warnings.filterwarnings("ignore", message=_ZERO_WARNING)
                found = self._monitor.end_window(mark, sync_execution=False)
        except self._errors as error:
            raise EnergyError(f"zeus cannot end a window ({error})") from error
        parts = {GPU: found.gpu_energy, CPU_PACKAGE: found.cpu_energy, DRAM: found.dram_energy}
        joules = {scope: sum((parts[scope] or {}).values()) for scope in self.scopes}
        if any(value < 0 for value in joules.values()):
            raise EnergyError("a counter of zeus went backwards; was its driver loaded again?")
        return joules


def open_zeus(library: Any | None = None, root: Path = POWERCAP) -> ZeusBackend:
    """Zeus with whatever it finds on this machine.

    Args:
        library: Has `ZeusMonitor` and `ZeusBaseError`; the package `zeus` is imported where it is None.
        root: The powercap folder, which tells packages from other zones.

    Raises:
        EnergyError: Zeus is not installed, finds nothing to count, or would have to add up samples of a GPU's power.
    """
    library = library or _import_library()
    # Zeus takes every zone of the top level for a package, but `psys` holds them all.
    packages = package_numbers(root)
    try:
        monitor = _start(library, packages)
    except (library.ZeusBaseError, RuntimeError, OSError) as error:
        raise EnergyError(f"zeus cannot start ({error})") from error
    reason = None if monitor.cpu_indices else _why_no_packages(root)
    if not monitor.gpu_indices and not monitor.cpu_indices:
        raise EnergyError(f"zeus finds no GPU, and no CPU package ({reason})")
    if monitor.power_monitor is not None:
        raise EnergyError("a GPU here has no energy counter, and zeus would add up samples of its power")
    missing = {} if monitor.gpu_indices else {GPU: "zeus finds no GPU"}
    if reason is not None:
        missing |= {CPU_PACKAGE: reason, DRAM: reason}
    backend = ZeusBackend(monitor, library.ZeusBaseError, missing)
    if reason is None and DRAM not in backend.scopes:
        backend.missing[DRAM] = NO_DRAM
    return backend


def _start(library: Any, packages: list[int]) -> Any:
    """A monitor of GPUs and packages; of GPUs alone where the packages' counters may not be read.

    Packages may be readable through zeus' own daemon where their files are not.
    """
    if packages:
        try:
            monitor = library.ZeusMonitor(cpu_indices=packages)
        except RuntimeError:
            return library.ZeusMonitor(cpu_indices=[])
        if len(monitor.cpus):
            return monitor
    return library.ZeusMonitor(cpu_indices=[])


def _import_library() -> Any:
    try:
        from zeus.exception import ZeusBaseError
        from zeus.monitor import ZeusMonitor
    except ModuleNotFoundError as error:
        raise EnergyError(f"{error.name} is not installed; install zeus with pip install 'mtad[energy]'") from error
    return SimpleNamespace(ZeusMonitor=ZeusMonitor, ZeusBaseError=ZeusBaseError)


def _why_no_packages(root: Path) -> str:
    try:
        for folder in find_zones(root):
            read_counter(folder / "energy_uj")
    except EnergyError as error:
        return str(error)
    return "zeus cannot read the CPU packages, though the counters are there; use --meter rapl"
