"""Windows, idle power, totals, and what is not measured."""

import subprocess
import sys

import pytest
from tests.unit.energy.fakes import FakeCounter, FakeTime, refuse

from mtad.energy import EnergyMeter, EnergyReading, open_meter
from mtad.errors import ConfigError, EnergyError


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def meter_of(time: FakeTime, *backends: FakeCounter, **details: object) -> EnergyMeter:
    return EnergyMeter(backends, clock=time, **details)  # type: ignore[arg-type]


def read(meter: EnergyMeter, time: FakeTime, seconds: float) -> EnergyReading:
    with meter.window() as window:
        time.sleep(seconds)
    assert window.reading is not None
    return window.reading


def test_joules_are_those_of_the_window_by_scope(time: FakeTime) -> None:
    meter = meter_of(time, FakeCounter(time, {"gpu": 300.0}, "nvml"), FakeCounter(time, {"cpu_package": 40.0}, "rapl"))
    time.sleep(7)
    reading = read(meter, time, 4)
    assert reading.joules == {"gpu": 1200.0, "cpu_package": 160.0}
    assert (reading.backend, reading.seconds, reading.total_joules) == ("nvml+rapl", 4, 1360.0)
    assert reading.net_joules is None
    assert reading.reason is None
    assert meter.describe() == "energy of GPU + CPU package, by nvml+rapl"


def test_windows_lie_in_one_another(time: FakeTime) -> None:
    meter = meter_of(time, FakeCounter(time, {"gpu": 10.0}))
    with meter.window() as outer:
        time.sleep(1)
        inner = read(meter, time, 2)
        time.sleep(3)
    assert outer.reading is not None
    assert (inner.joules, outer.reading.joules) == ({"gpu": 20.0}, {"gpu": 60.0})


def test_a_short_window_has_seconds_and_a_reason_but_no_joules(time: FakeTime) -> None:
    reading = read(meter_of(time, FakeCounter(time, {"gpu": 10.0})), time, 1.5)
    assert reading.joules == {}
    assert reading.total_joules is None
    assert reading.seconds == 1.5
    assert "took 1.50 s, expected at least 2 s" in reading.not_measured["gpu"]


def test_work_is_repeated_until_the_window_is_long_enough(time: FakeTime) -> None:
    meter = meter_of(time, FakeCounter(time, {"gpu": 10.0}))
    reading, count = meter.measure(lambda: time.sleep(0.75))
    assert (count, reading.seconds, reading.joules) == (3, 2.25, {"gpu": 22.5})
    assert meter.measure(lambda: time.sleep(9))[1] == 1


def test_idle_power_is_kept_apart(time: FakeTime) -> None:
    counter = FakeCounter(time, {"gpu": 60.0, "dram": 5.0})
    meter = meter_of(time, counter)
    idle = meter.measure_idle(sleep=time.sleep)
    assert idle.seconds >= 2
    assert meter.idle_watts == {"gpu": 60.0, "dram": 5.0}
    counter.watts = {"gpu": 260.0, "dram": 9.0}
    reading = read(meter, time, 10)
    assert reading.joules == {"gpu": 2600.0, "dram": 90.0}
    assert reading.total_joules == pytest.approx(2690)
    assert reading.net_joules == pytest.approx(2690 - 650)


def test_a_counter_that_fails_takes_only_its_own_scopes_along(time: FakeTime) -> None:
    broken, whole = FakeCounter(time, {"gpu": 10.0}), FakeCounter(time, {"cpu_package": 1.0})
    meter = meter_of(time, broken, whole)
    with meter.window() as window:
        time.sleep(3)
        broken.error = "the GPU is lost"
    assert window.reading is not None
    assert window.reading.joules == {"cpu_package": 3.0}
    assert window.reading.not_measured == {"gpu": "the GPU is lost"}
    broken.error, whole.error = None, "gone"
    with meter.window() as late:
        whole.error = None
        time.sleep(3)
    assert late.reading is not None
    assert late.reading.not_measured == {"cpu_package": "gone"}


def test_counters_that_stand_still_or_fall_are_no_measurement(time: FakeTime) -> None:
    counter = FakeCounter(time, {"gpu": 0.0})
    meter = meter_of(time, counter)
    assert "did not move in 3.0 s" in read(meter, time, 3).not_measured["gpu"]
    counter.watts = {"gpu": -5.0}
    assert "went backwards" in read(meter, time, 3).not_measured["gpu"]


def test_the_device_is_waited_for_at_both_ends(time: FakeTime) -> None:
    moments: list[float] = []
    meter = meter_of(time, FakeCounter(time, {"gpu": 1.0}), synchronize=lambda: moments.append(time()))
    read(meter, time, 3)
    assert moments == [100, 103]


def test_a_window_is_closed_when_its_work_fails(time: FakeTime) -> None:
    meter = meter_of(time, FakeCounter(time, {"gpu": 1.0}))
    windows = []

    def fail() -> None:
        with meter.window() as window:
            windows.append(window)
            time.sleep(4)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    (window,) = windows
    assert window.reading is not None
    assert window.reading.joules == {"gpu": 4.0}


def test_the_counter_never_falls_and_adds_up(time: FakeTime) -> None:
    backend = FakeCounter(time, {"gpu": 2.0})
    meter = meter_of(time, backend)
    assert meter.counter() == {"gpu": 0.0}
    found = []
    for seconds in (1, 0, 4):
        time.sleep(seconds)
        found.append(meter.counter()["gpu"])
    assert found == [2, 2, 10]
    backend.error = "lost"
    assert meter.counter() == {}
    meter.close()
    assert backend.is_closed


def test_auto_takes_zeus_first_then_what_there_is(time: FakeTime) -> None:
    def zeus() -> FakeCounter:
        return FakeCounter(time, {"gpu": 1.0}, "zeus")

    def nvml() -> FakeCounter:
        return FakeCounter(time, {"gpu": 1.0}, "nvml")

    def rapl() -> FakeCounter:
        return FakeCounter(time, {"cpu_package": 1.0}, "rapl")

    absent = {name: refuse(f"no {name} here") for name in ("zeus", "nvml", "rapl")}
    assert open_meter(openers={"zeus": zeus, "nvml": nvml, "rapl": rapl}).name == "zeus"
    assert open_meter(openers=absent | {"nvml": nvml, "rapl": rapl}).name == "nvml+rapl"
    only = open_meter(openers=absent | {"rapl": rapl})
    assert (only.name, only.scopes) == ("rapl", ("cpu_package",))
    assert only.not_measured["gpu"] == "no nvml here"
    nothing = open_meter(openers=absent)
    assert (nothing.name, nothing.scopes) == ("none", ())
    text = "energy: not measured: GPU: no nvml here; CPU package, DRAM: no rapl here"
    assert nothing.describe() == text
    assert read(nothing, time, 0).reason == text.removeprefix("energy: not measured: ")


def test_what_was_asked_for_must_be_there(time: FakeTime) -> None:
    with pytest.raises(EnergyError, match="meter nvml: no driver; or choose --meter auto"):
        open_meter("nvml", openers={"nvml": refuse("no driver")})
    with pytest.raises(ConfigError, match="unknown meter 'wattmeter'; known are auto, zeus, nvml, rapl, none"):
        open_meter("wattmeter")
    with pytest.raises(ConfigError, match="unknown meter 'replay'"):
        open_meter("replay")
    nothing = open_meter("none")
    assert nothing.describe() == "energy: not measured: no meter was asked for"


def test_the_meter_needs_the_standard_library_alone() -> None:
    code = "import sys, mtad.energy; assert not {'torch', 'numpy', 'pynvml', 'zeus'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
