"""`mtad calibrate` writes a profile that `mtad generate` uses."""

import json
import tomllib
from pathlib import Path

import pytest
from tests.data_folder import write_data_folder
from tests.tiny_engine import tiny_engine
from tests.unit.cli.conftest import RunCommand, only_sentence

from mtad.api import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(max_positions=2048)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_data_folder(tmp_path / "data")
    lines = [f"the sea number {number} is wide and blue " * 20 for number in range(8)]
    (folder / "wikitext-2/test.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("budget", ["lossless", "max speed"])
def test_a_profile_is_written_and_used(command: RunCommand, data: Path, tmp_path: Path, budget: str) -> None:
    profile = tmp_path / "fast.toml"
    words = ("--tasks", "wikitext", "--max-new-tokens", "8", "--budget", budget, "--profile-out", str(profile))
    outcome = command("calibrate", "--data", str(data), *words, "--out", str(tmp_path / "run"))
    assert outcome.status == 0, outcome.err
    assert "checked on 4" in outcome.out
    found = tomllib.loads(profile.read_text())
    assert found["measured"]["budget"] == budget
    assert found["measured"]["items"] == ["wikitext: 8"]
    assert found["measured"]["quantization"] == "none"
    is_joint = found["settings"]["method"] in ("mmtad", "mtad") and "verifier" not in found["settings"]
    assert not (budget == "lossless" and is_joint)
    guesses = json.loads((tmp_path / "run/calibration.json").read_text())["guesses"]
    assert len(guesses) == (0 if budget == "lossless" else 40)
    answer = command("generate", "--profile", str(profile), "--max-new-tokens", "4", "--json", "--raw", "once")
    assert answer.status == 0, answer.err
    config = json.loads(answer.out)["config"]
    assert {name: config[name] for name in ("method", "gamma", "threshold")} == {
        name: found["settings"][name] for name in ("method", "gamma", "threshold")
    }
    flagged = command("generate", "--profile", str(profile), "--gamma", "5", "--json", "--raw", "once")
    assert json.loads(flagged.out)["config"]["gamma"] == 5


def test_the_draft_is_chosen_too(command: RunCommand, data: Path, tmp_path: Path) -> None:
    profile = tmp_path / "fast.toml"
    words = ("--tasks", "wikitext", "--max-new-tokens", "6", "--budget", "max speed", "--profile-out", str(profile))
    outcome = command(
        "calibrate", "--data", str(data), *words, "--out", str(tmp_path / "run"), "--drafts", "./nano", "./base"
    )
    assert outcome.status == 0, outcome.err
    guesses = json.loads((tmp_path / "run/calibration.json").read_text())["guesses"]
    assert {guess["draft"] for guess in guesses} == {"./nano", "./base"}
    found = tomllib.loads(profile.read_text())
    labels = {row["contender"] for row in json.loads((tmp_path / "run/chosen_on/run.json").read_text())["rows"]}
    assert {"autoregressive", "speculative:gamma=3 (nano)", "speculative:gamma=3 (base)"} <= labels
    assert found["settings"]["draft"] in ("./nano", "./base")
    assert found["measured"]["draft"] == found["settings"]["draft"]


def test_joules_are_measured_where_the_budget_is_of_energy(
    command: RunCommand, data: Path, tmp_path: Path, recording: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtad.energy.meter.MINIMUM_WINDOW_S", 0.05)
    profile = tmp_path / "frugal.toml"
    words = ("--tasks", "wikitext", "--max-new-tokens", "6", "--budget", "joules<=1000", "--profile-out", str(profile))
    outcome = command("calibrate", "--data", str(data), *words, "--out", str(tmp_path / "run"), "--meter", recording)
    assert outcome.status == 0, outcome.err
    assert "energy of GPU + CPU package, replayed from a recording" in outcome.err
    assert outcome.err.count("measured joules on wikitext") == 2
    assert "J/token" in outcome.out
    assert outcome.out.count(" kept ") == 2
    measured = tomllib.loads(profile.read_text())["measured"]
    assert measured["meter"].startswith("energy of GPU + CPU package, replayed")
    assert 0 < measured["wikitext_joules_per_token"] < 1000
    assert measured["wikitext_joules_ratio"] > 0
    refused = command(
        "calibrate", "--data", str(data), *words[:4], "--budget", "joules<=0", "--meter", recording, "--out",
        str(tmp_path / "run"),
    )  # fmt: skip
    assert refused.status == 2
    assert "no candidate keeps to the budget 'joules<=0'" in refused.err


def test_a_budget_of_energy_needs_a_counter(command: RunCommand, data: Path, tmp_path: Path) -> None:
    words = ("--tasks", "wikitext", "--budget", "energy<=80% of sampling", "--meter", "none")
    outcome = command("calibrate", "--data", str(data), *words, "--out", str(tmp_path / "x"))
    only_sentence(outcome, "needs joules; not measured: no meter was asked for", "choose another --meter")
    assert not (tmp_path / "x").exists()


def test_a_score_budget_needs_scores(command: RunCommand, data: Path, tmp_path: Path) -> None:
    words = (
        "--tasks",
        "wikitext",
        "--max-new-tokens",
        "4",
        "--budget",
        "score within 1%",
        "--out",
        str(tmp_path / "x"),
    )
    outcome = command("calibrate", "--data", str(data), *words)
    assert outcome.status == 2
    assert "needs a task with scores" in outcome.err


def test_bad_input_is_one_sentence(command: RunCommand, data: Path, tmp_path: Path) -> None:
    base = ("calibrate", "--data", str(data), "--tasks", "wikitext")
    only_sentence(command(*base, "--budget", "cheap"), "budget must be 'perplexity<=sampling'", "got 'cheap'")
    only_sentence(command("calibrate"), "calibrate needs --data")
    only_sentence(command(*base, "--limit", "2"), "needs at least 4 items")
    profile = tmp_path / "p.toml"
    profile.write_text("gamma = 3\n")
    only_sentence(command("generate", "--profile", str(profile), "once"), "holds no table [settings]")
    profile.write_text("[settings]\ngama = 3\n")
    only_sentence(command("generate", "--profile", str(profile), "once"), "unknown setting 'gama'", "gamma")
