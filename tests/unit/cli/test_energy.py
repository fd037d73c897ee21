"""`mtad energy` measures, says why it cannot, writes a record, goes on with it, and refuses what it cannot run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_engine import tiny_engine
from tests.unit.cli.conftest import RunCommand, only_sentence
from tests.unit.energy.fakes import refuse

from mtad.api import Engine
from mtad.bench import energy as bench_energy
from mtad.cli import energy, experiment
from mtad.energy import meter, opening
from mtad.report.building import build_report
from mtad.report.loading import load_record

SHORT = ("--new-tokens", "4", "--repeats", "2", "--window", "0.05", "--gamma", "2", "--beam-width", "2")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(max_positions=4096)


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of two seconds are for real counters."""
    monkeypatch.setattr(meter, "MINIMUM_WINDOW_S", 0.05)
    monkeypatch.setattr(energy, "WINDOW", replace(energy.WINDOW, minimum=0))
    monkeypatch.setattr(bench_energy, "UNMEASURED_PHASE_S", 0.01)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_joules_of_a_recording_come_out_as_its_power(command: RunCommand, recording: str, tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    words = ("--rules", "autoregressive", "speculative", "mmtad", "--patterns", "steady", "bursty")
    outcome = command("energy", *words, "--meter", recording, "--record", str(path), *SHORT)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("energy of GPU + CPU package, replayed from a recording, not of this run")
    assert "DRAM: the recording has no such counter" in lines[0]
    assert "steady, batch 1, short questions, 4 new tokens, float64" in outcome.out
    record = read(path)
    assert {item["guard"] for item in record["setup"]["contenders"].values()} == {"off"}
    assert (record["kind"], record["schema"], record["setup"]["baseline"]) == ("energy", 1, "speculative")
    assert {"command", "commit", "machine", "versions"} <= set(record["run"])
    assert len(record["samples"]) == 3 * 2 * 2
    for sample in record["samples"]:
        reading = sample["reading"]
        assert sum(reading["joules"].values()) == pytest.approx(250 * reading["seconds"], rel=0.3)
        assert reading["idle_watts"]["gpu"] == pytest.approx(200, rel=0.3)
        assert reading["is_recording"]
        assert sample["num_tokens"] == 4 * sample["num_answers"]
        assert len(sample["latencies_s"]) == sample["num_answers"]
        assert reading["seconds"] >= sample["seconds"] >= sample["busy_s"] > 0
    assert {(item["contender"], item["phase"]) for item in record["phases"]} == {
        ("autoregressive", "score"),
        *((name, phase) for name in ("speculative", "mmtad") for phase in ("draft", "score")),
    }


def test_rows_are_joules_by_tokens_against_speculative(command: RunCommand, recording: str) -> None:
    words = ("--rules", "autoregressive", "speculative", "mmtad", "--patterns", "steady", "--meter", recording)
    outcome = command("energy", *words, "--json", *SHORT)
    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == ["autoregressive", "speculative", "mmtad"]
    assert rows["speculative"]["saving"]["value"] == 1
    row = rows["mmtad"]
    # All contenders get the same schedule; at constant power the joules are those of its length.
    assert row["watts"] == pytest.approx(250, rel=0.3)
    assert row["joules_by_scope"]["gpu"] == pytest.approx(4 * row["joules_by_scope"]["cpu_package"])
    assert row["joules_per_answer"] == pytest.approx(4 * row["joules_per_token"]["value"], rel=0.5)
    # The recording takes at rest what it takes at work, so nothing is left.
    assert abs(row["net_joules_per_token"]["value"]) < 0.5 * row["joules_per_token"]["value"]
    assert row["draft_joules"] == pytest.approx(0.25 * row["draft_ms"], rel=0.3)
    assert row["score_joules"] == pytest.approx(0.25 * row["score_ms"], rel=0.3)
    assert rows["autoregressive"]["draft_joules"] is None
    assert (rows["autoregressive"]["tokens_per_call"], row["reason"]) == (1, None)


def test_without_a_counter_there_are_speeds_and_the_reason(command: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    words = ("--rules", "speculative", "mtad", "--patterns", "steady", "--meter", "none", "--record", str(path))
    outcome = command("energy", *words, *SHORT)
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[0] == "energy: not measured: no meter was asked for"
    rows = [line for line in outcome.out.splitlines() if line.startswith(("speculative", "mtad"))]
    assert all("not measured" in line and len(line.split()) == 10 for line in rows)
    files = build_report([load_record(path)])
    assert str(files["report.html"]).count("Energy: not measured: no meter was asked for") == 2
    assert "| speculative | not measured |" in str(files["report.md"])
    document = load_record(path).rows[0]
    assert document["reason"] == "no meter was asked for"
    assert document["joules_per_token"] is None
    assert document["draft_ms"] > 0


def test_a_killed_run_goes_on_and_keeps_its_schedule(command: RunCommand, recording: str, tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    words = ("energy", "--rules", "speculative", "mtad", "--patterns", "steady", "--meter", recording, "--record")
    assert command(*words, str(path), *SHORT).status == 0
    whole = read(path)
    path.write_text(json.dumps(whole | {"samples": whole["samples"][:1], "phases": whole["phases"][:2]}))
    assert command(*words, str(path), *SHORT).status == 0
    after = read(path)
    assert (after["samples"][:1], after["phases"][:2]) == (whole["samples"][:1], whole["phases"][:2])
    assert (len(after["samples"]), len(after["phases"])) == (4, 4)
    assert after["service_s"] == whole["service_s"]
    assert len(after["continued"]) == 1
    other = ("energy", "--rules", "speculative", "mtad", "--patterns", "steady", "--record", str(path))
    only_sentence(command(*other, "--meter", "none", *SHORT), "the record's meter is replay (GPU + CPU package)")
    only_sentence(command(*words, str(path), *SHORT[:-1], "3"), "its setup differs")


def test_ctrl_c_keeps_what_is_measured(
    command: RunCommand, recording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "energy.json"
    measure = bench_energy._measure_window
    calls = iter(range(2))

    def stop(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(bench_energy, "_measure_window", stop)
    words = ("--rules", "speculative", "mtad", "--patterns", "steady", "--meter", recording, "--record", str(path))
    outcome = command("energy", *words, *SHORT)
    assert outcome.status == 130
    assert len(read(path)["samples"]) == 2
    assert "steady, batch 1" in outcome.out


def test_methods_that_take_whole_batches_are_left_out_with_the_reason(command: RunCommand, recording: str) -> None:
    words = ("--rules", "speculative", "beam_sampling", "--patterns", "steady", "--meter", recording)
    outcome = command("energy", *words, *SHORT)
    assert outcome.status == 0, outcome.err
    assert "beam_sampling: left out, beam_sampling decodes whole batches" in outcome.out
    only_sentence(command("energy", "--rules", "beam_sampling", *SHORT), "name another contender")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--meter", "wattmeter"), "unknown meter 'wattmeter'"),
        (("--meter", "replay:/nowhere.json"), "recording /nowhere.json cannot be read"),
        (("--patterns", "hourly"), "unknown pattern 'hourly'; known are steady, bursty, idle"),
        (("--batch-sizes", "0"), "batch_sizes must be"),
        (("--max-new-tokens", "9"), "energy takes no --max-new-tokens; use --new-tokens"),
        (("--method", "mtad"), "energy takes no --method; use --rules"),
        (("--rules", "nonsense"), "unknown rule 'nonsense'"),
        (("--meter", "rapl"), "meter rapl: "),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setitem(opening.OPENERS, "rapl", refuse("not here"))
    only_sentence(command("energy", *words), sentence)


def test_windows_are_two_seconds_at_least(command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert energy.WINDOW.minimum == meter.MINIMUM_WINDOW_S == 2


def test_the_experiment_is_the_same_over_a_grid(
    command: RunCommand, recording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"batch_sizes": [1, 2], "prompt_tokens": [0], "repeats": 1, "window": 0.05, "patterns": ["steady"]}
    monkeypatch.setattr(experiment, "ENERGY_GRID", experiment.ENERGY_GRID | grid)
    folder = tmp_path / "run"
    words = ("--meter", recording, "--out", str(folder), "--max-new-tokens", "4", "--gamma", "2", "--beam-width", "2")
    outcome = command("experiment", "energy", *words)
    assert outcome.status == 0, outcome.err
    record = read(folder / "run.json")
    assert record["experiment"] == "energy"
    assert "every method against speculative" in record["question"]
    assert len(record["samples"]) == 2 * 4
    files = build_report([load_record(folder)])
    assert "replayed from a recording, not measured in this run" in str(files["report.html"])
    assert {name for name in files if name.endswith(".svg")} == {
        f"figures/1-workload-{number}-{kind}.svg" for number in (1, 2) for kind in ("energy", "phases")
    }
