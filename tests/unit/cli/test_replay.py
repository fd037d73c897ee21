"""`mtad replay` over traces of a tiny engine."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import RunCommand, only_sentence

SHORT = ("--max-new-tokens", "20", "--gamma", "3", "--beam-width", "2", "--ignore-eos")


@pytest.fixture
def trace(command: RunCommand, tmp_path: Path) -> str:
    path = tmp_path / "run.arrow"
    outcome = command("generate", "tell me", *SHORT, "--threshold", "0.4", "--trace", str(path), "--json")
    assert outcome.status == 0
    assert outcome.err == ""
    return str(path)


def replayed(command: RunCommand, *arguments: str) -> Any:
    outcome = command("replay", *arguments, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    (line,) = outcome.out.splitlines()
    return json.loads(line)


def test_the_table_shows_what_was_recorded_and_every_rule_and_threshold(command: RunCommand, trace: str) -> None:
    outcome = command("replay", trace, "--rule", "joint", "--rule", "typical", "--threshold", "0.1", "--threshold", "1")
    assert (outcome.status, outcome.err) == (0, "")
    heading, titles, *rows = outcome.out.splitlines()
    assert "steps of 1 answers, mmtad (beam_tree, joint), target tiny" in heading
    assert titles.split() == ["rule", "tau", "tokens/call", "kept", "%", "perplexity", "same", "on", "policy"]
    assert [row.split()[:2] for row in rows[1:3]] == [["joint", "0.1"], ["joint", "1"]]
    assert rows[0].startswith("recorded: joint  0.4")
    assert rows[3].startswith("typical  ")
    assert rows[4].startswith("Every step is judged in the state that the recorded run had reached")


def test_the_recorded_rule_is_the_default_and_decides_as_recorded(command: RunCommand, trace: str) -> None:
    document = replayed(command, trace)
    assert document["facts"]["config"]["threshold"] == 0.4
    (item,) = document["judgements"]
    assert item == document["recorded"] | {"threshold": None}
    assert item["agreement"] == item["on_policy_share"] == 1


def test_all_rules_that_fit_are_judged(command: RunCommand, trace: str) -> None:
    document = replayed(command, trace, "--rule", "all", "--threshold", "0.1", "--threshold", "0.9")
    rules = [(item["rule"], item["threshold"]) for item in document["judgements"]]
    assert ("joint", 0.1) in rules
    assert ("joint", 0.9) in rules
    assert ("target_only", None) in rules
    assert "block" not in dict(rules)


def test_dials_are_those_of_the_run_unless_given(command: RunCommand, tmp_path: Path) -> None:
    path = str(tmp_path / "run.arrow")
    flags = ("--verifier", "typical", "--typical-epsilon", "0.9", "--typical-delta", "0.9")
    command("generate", "tell me", *SHORT, *flags, "--trace", path)
    assert replayed(command, path)["judgements"][0]["agreement"] == 1
    changed = replayed(command, path, "--typical-epsilon", "0.0001")["judgements"][0]
    assert changed["agreement"] < 1


def test_strict_spans_and_constraints_are_replayed(command: RunCommand, tmp_path: Path) -> None:
    path = str(tmp_path / "run.arrow")
    flags = ("--strict", "a,e", "--repetition-penalty", "1.3", "--min-p", "0.05", "--logit-bias", "5:1.5,7:-inf")
    outcome = command("generate", "tell me", *SHORT, *flags, "--threshold", "0.05", "--trace", path, "--json")
    stats = json.loads(outcome.out)["stats"]
    (item,) = replayed(command, path)["judgements"]
    assert item["agreement"] == 1
    assert item["tokens_per_call"] == stats["tokens_per_call"]
    assert item["perplexity"] == pytest.approx(stats["perplexity"], rel=1e-6)


def test_what_is_whole_of_a_trace_cut_off_is_used(command: RunCommand, trace: str) -> None:
    whole = replayed(command, trace)
    content = Path(trace).read_bytes()
    Path(trace).write_bytes(content[:-3])
    outcome = command("replay", trace, "--json")
    assert outcome.status == 0
    assert json.loads(outcome.out) == whole | {"is_cut_off": True}
    assert outcome.err == f"mtad: the end of trace {trace} is missing; its {whole['num_steps']} whole steps were used\n"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--rule", "jointt"], ["rule must be one of target_only, ", "all, got 'jointt'"]),
        (["--rule", "block"], ["rule block needs the draft's distributions", "can be judged by target_only, exact"]),
        (["--threshold", "0"], ["threshold must be a number > 0 and <= 1, got 0"]),
        (["--threshold", "0.1", "--threshold", "x"], ["threshold must be a number", "got 'x'"]),
        (["--typical-delta", "2"], ["typical_delta must be a number", "got 2"]),
        (["--rule", "joint", "--typical-delta", "0.2"], ["--typical-delta is read by typical, got rule joint"]),
        (["--rule", "exact_match", "--threshold", "0.2"], ["--threshold is read by joint or joint_own_path"]),
        (["--gamma", "3"], ["unknown flag --gamma"]),
    ],
)
def test_bad_flags_are_refused_in_one_sentence(
    flags: list[str], parts: list[str], command: RunCommand, trace: str
) -> None:
    only_sentence(command("replay", trace, *flags), *parts)


def test_a_dial_that_the_recorded_rule_does_not_read_is_refused(command: RunCommand, trace: str) -> None:
    outcome = command("replay", trace, "--accept-single", "0.3")
    only_sentence(outcome, "--accept-single is read by threshold, got rule joint")


def test_files_that_are_no_traces_are_refused(command: RunCommand, tmp_path: Path) -> None:
    only_sentence(command("replay", str(tmp_path / "none")), "cannot be read (No such file or directory)")
    (tmp_path / "empty").write_bytes(b"")
    only_sentence(command("replay", str(tmp_path / "empty")), "is empty")
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    only_sentence(command("replay", str(tmp_path / "text")), "is no trace")


def test_a_trace_that_cannot_be_kept_is_refused_before_models_are_loaded(
    command: RunCommand, loads: list[Any], tmp_path: Path
) -> None:
    only_sentence(command("generate", "a", "--trace", str(tmp_path)), "is a folder")
    only_sentence(command("generate", "a", "--trace", str(tmp_path / "b" / "c")), "folder that does not exist")
    outcome = command("generate", "a", "--method", "mtjd", "--trace", str(tmp_path / "c"))
    only_sentence(outcome, "method mtjd keeps no trace")
    assert loads == []
