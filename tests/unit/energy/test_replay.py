"""Recordings of counters, and files that are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.energy.fakes import FakeTime

from mtad.energy import open_meter
from mtad.energy.replay import ReplayBackend
from mtad.errors import EnergyError

RECORDING = {"seconds": [0, 1, 2.5], "joules": {"gpu": [10, 40, 100], "dram": [0, 0, 6]}}


def test_a_recording_ticks_as_it_did_and_begins_again_on_top() -> None:
    time = FakeTime()
    backend = ReplayBackend([0, 1, 2.5], {"gpu": [10, 40, 100], "dram": [0, 0, 6]}, clock=time)
    found = []
    for seconds in (0, 0.9, 0.1, 1.5, 1.2):
        time.sleep(seconds)
        found.append(backend.read())
    assert [item["gpu"] for item in found] == [0, 0, 30, 90, 120]
    assert [item["dram"] for item in found] == [0, 0, 0, 6, 6]
    assert backend.missing == {"cpu_package": "the recording has no such counter"}
    assert backend.resolution_s == 1.5


def test_a_reading_says_that_it_is_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "counter.json"
    path.write_text(json.dumps(RECORDING))
    meter = open_meter(f"replay:{path}")
    assert meter.is_recording
    assert meter.describe().startswith("energy of GPU + DRAM, replayed from a recording, not of this run")
    with meter.window() as window:
        pass
    assert window.reading is not None
    assert window.reading.is_recording


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"seconds": [0], "joules": {"gpu": [1]}},
        {"seconds": [1, 2], "joules": {"gpu": [1, 2]}},
        {"seconds": [0, 0], "joules": {"gpu": [1, 2]}},
        {"seconds": [0, 1], "joules": {"gpu": [2, 1]}},
        {"seconds": [0, 1], "joules": {"gpu": [1]}},
        {"seconds": [0, 1], "joules": {"wall": [1, 2]}},
        {"seconds": [0, 1], "joules": {}},
        {"seconds": [0, "1"], "joules": {"gpu": [1, 2]}},
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "counter.json"
    path.write_text(json.dumps(document))
    with pytest.raises(EnergyError, match="is no recording of a counter; expected seconds that rise from 0"):
        open_meter(f"replay:{path}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match="cannot be read"):
        open_meter(f"replay:{tmp_path / 'nothing.json'}")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(EnergyError, match="cannot be read"):
        open_meter(f"replay:{tmp_path / 'broken.json'}")
