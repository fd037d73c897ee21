"""Zeus without zeus, and the real package's own signature where it is installed."""

import dataclasses
import inspect
import sys
from pathlib import Path

import pytest
from tests.unit.energy.fakes import FakeTime, FakeZeus, write_zone

from mtad.energy import EnergyMeter
from mtad.energy.zeus import open_zeus
from mtad.errors import EnergyError


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    write_zone(tmp_path, "intel-rapl:1", "psys", 0)
    return tmp_path


def test_gpu_cpu_and_dram_in_windows_that_nest(time: FakeTime, root: Path) -> None:
    library = FakeZeus(time, {0: 300.0, 1: 100.0}, {0: 50.0}, {0: 4.0})
    meter = EnergyMeter([open_zeus(library, root)], clock=time)
    assert library.asked == [[0]], "psys is no package"
    with meter.window() as outer:
        with meter.window() as inner:
            time.sleep(2)
        time.sleep(3)
    assert inner.reading is not None
    assert outer.reading is not None
    assert inner.reading.joules == {"gpu": 800.0, "cpu_package": 100.0, "dram": 8.0}
    assert outer.reading.joules == {"gpu": 2000.0, "cpu_package": 250.0, "dram": 20.0}
    assert meter.describe() == "energy of GPU + CPU package + DRAM, by zeus"


def test_gpus_alone_where_packages_may_not_be_read(time: FakeTime, root: Path) -> None:
    library = FakeZeus(time, {0: 300.0}, {0: 50.0}, may_read_cpus=False)
    backend = open_zeus(library, root)
    assert library.asked == [[0], []]
    assert backend.scopes == ("gpu",)
    assert "use --meter rapl" in backend.missing["cpu_package"]
    (root / "intel-rapl:0" / "energy_uj").unlink()
    assert "has vanished" in open_zeus(library, root).missing["dram"]


def test_zeus_that_sees_no_packages_though_they_are_there(time: FakeTime, root: Path) -> None:
    library = FakeZeus(time, {0: 300.0})
    assert open_zeus(library, root).scopes == ("gpu",)
    assert library.asked == [[0], []]


def test_packages_without_dram(time: FakeTime, root: Path) -> None:
    backend = open_zeus(FakeZeus(time, {}, {0: 50.0}), root)
    assert backend.scopes == ("cpu_package",)
    assert backend.missing == {"gpu": "zeus finds no GPU", "dram": "this processor has no RAPL counter for DRAM"}


def test_a_gpu_counter_that_stands_still_is_no_warning_but_a_reason(time: FakeTime, root: Path) -> None:
    meter = EnergyMeter([open_zeus(FakeZeus(time, {0: 0.0}, {0: 1.0}), root)], clock=time)
    with meter.window() as window:
        time.sleep(3)
    assert window.reading is not None
    assert window.reading.joules == {"cpu_package": 3.0}
    assert "did not move" in window.reading.not_measured["gpu"]


def test_what_zeus_cannot_count_is_refused(time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnergyError, match=r"zeus finds no GPU, and no CPU package \(there is no RAPL package"):
        open_zeus(FakeZeus(time), tmp_path)
    with pytest.raises(EnergyError, match="add up samples of its power"):
        open_zeus(FakeZeus(time, {0: 1.0}, has_old_gpu=True), tmp_path)
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    monkeypatch.setitem(sys.modules, "zeus.exception", None)
    with pytest.raises(EnergyError, match=r"install zeus with pip install 'mtad\[energy\]'"):
        open_zeus()


def test_the_real_monitor_has_what_is_asked_of_it() -> None:
    energy = pytest.importorskip("zeus.monitor.energy")
    assert "cpu_indices" in inspect.signature(energy.ZeusMonitor).parameters
    for name in ("begin_window", "end_window"):
        assert "sync_execution" in inspect.signature(getattr(energy.ZeusMonitor, name)).parameters
    fields = {item.name for item in dataclasses.fields(energy.Measurement)}
    assert {"gpu_energy", "cpu_energy", "dram_energy"} <= fields
    assert issubclass(pytest.importorskip("zeus.exception").ZeusBaseError, Exception)
