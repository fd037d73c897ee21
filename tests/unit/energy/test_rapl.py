"""RAPL over a folder that looks like the powercap folder of Linux."""

import os
import time
from pathlib import Path

import pytest
from tests.unit.energy.fakes import set_counter, write_zone

from mtad.energy.rapl import open_rapl, package_numbers
from mtad.energy.sampling import next_deadline
from mtad.errors import EnergyError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def test_packages_and_dram_are_summed_and_nothing_twice(root: Path) -> None:
    first = write_zone(root, "intel-rapl:0", "package-0", 1_000_000)
    second = write_zone(root, "intel-rapl:1", "package-1", 5_000_000)
    memory = write_zone(root, "intel-rapl:0:1", "dram", 7_000_000)
    others = [
        write_zone(root, "intel-rapl:0:0", "core", 0),
        write_zone(root, "intel-rapl:2", "psys", 0),
        write_zone(root, "intel-rapl-mmio:0", "package-0", 0),
    ]
    backend = open_rapl(root)
    mark = backend.begin()
    for file, microjoules in ((first, 4_000_000), (second, 5_500_000), (memory, 7_250_000)):
        set_counter(file, microjoules)
    for file in others:
        set_counter(file, 99_000_000)
    assert backend.end(mark) == {"cpu_package": 3.5, "dram": 0.25}
    assert backend.missing == {}
    assert package_numbers(root) == [0, 1]
    backend.close()


def test_a_counter_that_wraps_goes_on(root: Path) -> None:
    file = write_zone(root, "intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    backend = open_rapl(root)
    mark = backend.begin()
    set_counter(file, 500_000)
    assert backend.end(mark) == {"cpu_package": pytest.approx(1.5)}
    set_counter(file, 400_000)
    assert backend.end(mark) == {"cpu_package": pytest.approx(1.5 + 9.9)}
    assert backend.missing == {"dram": "this processor has no RAPL counter for DRAM"}
    backend.close()


def test_wraparounds_between_two_readings_are_seen_in_the_background(root: Path) -> None:
    file = write_zone(root, "intel-rapl:0", "package-0", 0, range_uj=40_000_000)
    backend = open_rapl(root)
    assert backend.interval_s == pytest.approx(0.01)
    mark = backend.begin()
    for microjoules in (30_000_000, 10_000_000, 39_000_000, 5_000_000):
        set_counter(file, microjoules)
        time.sleep(0.3)
    assert backend.end(mark) == {"cpu_package": pytest.approx(85)}
    backend.close()


def test_the_background_reads_often_enough_and_not_too_often(root: Path) -> None:
    write_zone(root, "intel-rapl:0", "package-0", 0)
    write_zone(root, "intel-rapl:0:0", "dram", 0, range_uj=16_000_000_000)
    backend = open_rapl(root)
    assert backend.interval_s == pytest.approx(4)
    backend.close()


def test_moments_stay_on_their_grid() -> None:
    assert next_deadline(10.0, 2.0, 10.3) == 12.0
    assert next_deadline(10.0, 2.0, 15.9) == 16.0
    assert next_deadline(10.0, 2.0, 9.9) == 12.0


def test_a_file_that_vanishes_ends_the_measurement_for_good(root: Path) -> None:
    file = write_zone(root, "intel-rapl:0", "package-0", 0)
    backend = open_rapl(root)
    mark = backend.begin()
    file.unlink()
    with pytest.raises(EnergyError, match="energy_uj has vanished"):
        backend.end(mark)
    set_counter(file, 5)
    with pytest.raises(EnergyError, match="energy_uj has vanished"):
        backend.begin()
    backend.close()


def test_permission_denied_says_how_to_grant_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_zone(root, "intel-rapl:0", "package-0", 0)
    file.chmod(0)
    if os.geteuid() == 0:  # root may read anything
        read_text = Path.read_text

        def refuse(path: Path, encoding: str | None = None) -> str:
            if path == file:
                raise PermissionError(13, "Permission denied", str(path))
            return read_text(path, encoding=encoding)

        monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(EnergyError, match="may not be read; allow it with: sudo chmod a") as caught:
        open_rapl(root)
    assert f"{root}/intel-rapl:*/energy_uj" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match=r"there is no .*powercap: no RAPL counters here"):
        open_rapl(tmp_path / "powercap")
    with pytest.raises(EnergyError, match="there is no RAPL package in"):
        open_rapl(tmp_path)
    assert package_numbers(tmp_path) == []
    write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("much")
    with pytest.raises(EnergyError, match="expected a whole number"):
        open_rapl(tmp_path)
