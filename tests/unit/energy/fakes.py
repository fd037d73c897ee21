"""Machines that are not there: a powercap folder, NVML, zeus, and time."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtad.energy.backends import CounterBackend
from mtad.errors import EnergyError


@dataclass
class FakeTime:
    """A clock that only `sleep` moves."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeCounter(CounterBackend):
    """A counter that takes a constant power of a fake time."""

    name = "fake"
    resolution_s = 0.1

    def __init__(self, time: FakeTime, watts: dict[str, float], name: str = "fake") -> None:
        self.name = name
        self.scopes = tuple(watts)
        self.missing: dict[str, str] = {}
        self.watts = watts
        self.error: str | None = None
        self.is_closed = False
        self._time = time
        self._joules = dict.fromkeys(watts, 0.0)
        self._then = time()

    def read(self) -> dict[str, float]:
        if self.error is not None:
            raise EnergyError(self.error)
        now = self._time()
        self._joules = {scope: value + self.watts[scope] * (now - self._then) for scope, value in self._joules.items()}
        self._then = now
        return dict(self._joules)

    def close(self) -> None:
        self.is_closed = True


def write_zone(root: Path, name: str, title: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    """A zone of a powercap folder; returns the file of its counter."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{title}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def set_counter(file: Path, energy_uj: int) -> None:
    """Replace a counter in one step: a background thread must never read an empty file."""
    partial = file.with_suffix(".partial")
    partial.write_text(f"{energy_uj}\n")
    partial.replace(file)


class FakeNvmlError(Exception):
    """What the module calls `NVMLError`."""


@dataclass
class FakeGpu:
    """One GPU."""

    uuid: str
    name: str = "H100"
    millijoules: int = 5_000
    is_split: bool = False
    has_counter: bool = True


@dataclass
class FakeNvml:
    """The functions of `pynvml` that are used; handles are the GPUs themselves."""

    gpus: list[FakeGpu]
    has_driver: bool = True
    num_open: int = 0
    NVMLError: type[Exception] = FakeNvmlError

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.has_driver:
            raise FakeNvmlError("Driver Not Loaded")
        self.num_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:  # noqa: N802
        return handle.uuid

    def nvmlDeviceGetName(self, handle: FakeGpu) -> bytes:  # noqa: N802
        return handle.name.encode()

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:  # noqa: N802
        if handle.name == "V100":
            raise FakeNvmlError("Not Supported")
        return [int(handle.is_split), 0]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:  # noqa: N802
        if not handle.has_counter:
            raise FakeNvmlError("Not Supported")
        return handle.millijoules


class FakeZeusError(Exception):
    """What zeus calls `ZeusBaseError`."""


@dataclass
class FakeMeasurement:
    """What a window of zeus gives."""

    time: float
    gpu_energy: dict[int, float]
    cpu_energy: dict[int, float] | None
    dram_energy: dict[int, float] | None


@dataclass
class FakeZeus:
    """The package `zeus`: makes monitors of a machine with these powers, `watts` by scope and number."""

    time: FakeTime
    gpu_watts: dict[int, float] = field(default_factory=dict)
    cpu_watts: dict[int, float] = field(default_factory=dict)
    dram_watts: dict[int, float] = field(default_factory=dict)
    may_read_cpus: bool = True
    has_old_gpu: bool = False
    ZeusBaseError: type[Exception] = FakeZeusError
    asked: list[list[int]] = field(default_factory=list)

    def ZeusMonitor(self, cpu_indices: list[int]) -> "FakeMonitor":  # noqa: N802
        self.asked.append(cpu_indices)
        if cpu_indices and not self.may_read_cpus:
            raise RuntimeError("Root privilege is required to read RAPL metrics.")
        return FakeMonitor(self, cpu_indices)


class FakeCpus:
    """What `ZeusMonitor.cpus` is."""

    def __init__(self, zeus: FakeZeus) -> None:
        self._zeus = zeus

    def __len__(self) -> int:
        return len(self._zeus.cpu_watts)

    def supports_get_dram_energy_consumption(self, index: int) -> bool:
        return index in self._zeus.dram_watts


class FakeMonitor:
    """A `ZeusMonitor`."""

    def __init__(self, zeus: FakeZeus, cpu_indices: list[int]) -> None:
        self._zeus = zeus
        self.gpu_indices = list(zeus.gpu_watts)
        self.cpu_indices = cpu_indices
        self.cpus = FakeCpus(zeus)
        self.power_monitor = object() if zeus.has_old_gpu else None
        self.windows: dict[str, float] = {}

    def begin_window(self, key: str, sync_execution: bool = True, restart: bool = False) -> None:
        assert not sync_execution
        if key in self.windows:
            raise ValueError(f"Measurement window '{key}' already exists")
        self.windows[key] = self._zeus.time()

    def end_window(self, key: str, sync_execution: bool = True, cancel: bool = False) -> FakeMeasurement:
        assert not sync_execution
        if key not in self.windows:
            raise ValueError(f"Measurement window '{key}' does not exist")
        seconds = self._zeus.time() - self.windows.pop(key)
        gpu = {index: watts * seconds for index, watts in self._zeus.gpu_watts.items()}
        if any(value == 0 for value in gpu.values()):
            warnings.warn("The energy consumption of one or more GPUs was measured as zero.", stacklevel=1)
        cpu = {index: self._zeus.cpu_watts[index] * seconds for index in self.cpu_indices}
        dram = {index: self._zeus.dram_watts[index] * seconds for index in self.cpu_indices if self._zeus.dram_watts}
        return FakeMeasurement(seconds, gpu, cpu or None, dram or None)


def refuse(message: str) -> Any:
    """An opener that finds nothing."""

    def opener() -> CounterBackend:
        raise EnergyError(message)

    return opener
