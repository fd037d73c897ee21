"""`mtad experiment` runs its presets in small."""

import json
from pathlib import Path

import pytest
from tests.data_folder import write_data_folder
from tests.tiny_engine import tiny_engine
from tests.unit.cli.conftest import RunCommand, only_sentence

from mtad.api import Engine
from mtad.evaluation import overhead

SHORT = ("--max-new-tokens", "6", "--limit", "2")
LONGER = ("--max-new-tokens", "60", "--limit", "2")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(max_positions=4096)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_data_folder(tmp_path / "data")
    (folder / "wikitext-2/test.txt").write_text("the sea is wide and the sky is blue " * 300 + "\n" + "a word " * 200)
    return folder


def record(folder: Path) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads((folder / "run.json").read_text())  # type: ignore[type-arg]
    return found


def test_quality_has_five_tasks(command: RunCommand, data: Path, tmp_path: Path) -> None:
    outcome = command("experiment", "quality", "--data", str(data), "--out", str(tmp_path / "run"), *SHORT)
    assert outcome.status == 0, outcome.err
    rows = record(tmp_path / "run")["rows"]
    assert len({row["task"] for row in rows}) == 5
    assert len({row["contender"] for row in rows}) == 6
    assert record(tmp_path / "run")["experiment"] == "quality"


def test_threshold_turns_the_dial(command: RunCommand, data: Path, tmp_path: Path) -> None:
    words = ("--tasks", "wikitext", "--thresholds", "0.1", "1", "--out", str(tmp_path / "run"))
    assert command("experiment", "threshold", "--data", str(data), *words, *LONGER).status == 0
    rows = {row["contender"]: row for row in record(tmp_path / "run")["rows"]}
    assert list(rows) == ["autoregressive", "speculative"] + [
        f"{name}:threshold={tau}" for name in ("mtad", "mmtad") for tau in ("0.1", "1")
    ]
    assert all(row["diversity"] is not None for row in rows.values())


def test_approximation_is_against_the_exact_optimum(command: RunCommand, data: Path, tmp_path: Path) -> None:
    words = ("--gamma", "2", "--beam-width", "2", "--limit", "2", "--out", str(tmp_path / "run"))
    outcome = command("experiment", "approximation", "--data", str(data), *words, "--max-new-tokens", "2")
    assert outcome.status == 0, outcome.err
    shares = {row["contender"]: row for row in record(tmp_path / "run")["shares"]}
    assert shares["mtjd"]["share"]["value"] == 1.0
    assert all(0 < row["share"]["value"] <= 1 + 1e-6 for row in shares.values())
    assert "share of optimum" in outcome.out
    assert all(shares[name]["smallest_ratio"] > 0.5 for name in ("mtad", "mmtad")), "the rule's own promise"
    assert shares["autoregressive"]["smallest_ratio"] is None
    assert [line.split()[-1] for line in outcome.out.splitlines() if line.split()[0] in ("mtad", "mmtad")] == [
        "0.5"
    ] * 2


def test_auxiliary_size_needs_drafts(command: RunCommand, data: Path, tmp_path: Path) -> None:
    base = ("experiment", "auxiliary-size", "--data", str(data), "--out", str(tmp_path / "run"), *SHORT)
    only_sentence(command(*base), "auxiliary-size compares drafts", "--drafts")
    outcome = command(*base, "--drafts", "./nano", "./base", "--rules", "autoregressive", "mmtad", "joint@early_exit")
    assert outcome.status == 0, outcome.err
    labels = [row["contender"] for row in record(tmp_path / "run")["rows"]]
    assert labels == ["autoregressive", "mmtad (nano)", "joint@early_exit", "mmtad (base)"]


def test_overhead_grows(command: RunCommand, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "NEW_TOKENS", 4)
    words = ("--rules", "autoregressive", "mmtad", "--out", str(tmp_path / "run"))
    outcome = command("experiment", "overhead", "--data", str(data), *words)
    assert outcome.status == 0, outcome.err
    rows = record(tmp_path / "run")["rows"]
    assert len(rows) == 2 * 9
    assert all(row["verify_ms"] > 0 for row in rows)
    sizes = {(row["contender"], row["context"], row["batch_size"]): row["cache_bytes"] for row in rows}
    assert sizes["mmtad", 1024, 8] > sizes["mmtad", 64, 1]


def test_bad_input_is_one_sentence(command: RunCommand, data: Path) -> None:
    only_sentence(command("experiment", "magic", "--data", str(data)), "unknown experiment 'magic'", "quality")
    only_sentence(command("experiment", "quality"), "experiment needs --data")
    only_sentence(command("experiment", "quality", "--data", "/nowhere"), "data folder /nowhere is not there")
