"""`mtad compare` shows a table, writes a record, and refuses what it cannot run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.cli.conftest import RunCommand, only_sentence

from mtad.cli.tables import format_table

SHORT = ("--max-new-tokens", "6", "--gamma", "2", "--beam-width", "2", "--raw")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("once\nupon\na time there was\nthe end\n")
    return path


def test_the_table_has_a_line_a_contender(command: RunCommand, prompts: Path) -> None:
    outcome = command("compare", "--prompts-file", str(prompts), "--rules", "autoregressive", "block", "mtad", *SHORT)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == ["contender", "autoregressive", "block", "mtad"]
    assert [line.split()[1] for line in lines[1:]] == ["yes", "yes", "no"]


def test_all_rules_run(command: RunCommand, prompts: Path) -> None:
    outcome = command("compare", "--prompts-file", str(prompts), "--num-prompts", "1", "--json", *SHORT)
    assert outcome.status == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert len(rows) >= 13
    assert all(row["num_answers"] == 1 for row in rows)


def test_prompts_are_taken_evenly_from_every_file(command: RunCommand, prompts: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    arguments = ("--prompts-file", str(prompts), "--prompts-file", str(prompts), "--num-prompts", "3")
    outcome = command("compare", *arguments, "--rules", "block", "--record", str(record), *SHORT)
    assert outcome.status == 0, outcome.err
    assert json.loads(record.read_text())["workload"]["num_prompts"] == 3


def test_an_interrupted_run_goes_on_from_its_record(
    command: RunCommand, prompts: Path, tmp_path: Path, interrupt_after: Callable[[int], None]
) -> None:
    record = tmp_path / "record.json"
    named = ("compare", "--prompts-file", str(prompts), "--rules", "autoregressive", "--batch-size", "1")
    arguments = (*named, "--record", str(record), *SHORT, "--ignore-eos")
    interrupt_after(15)
    outcome = command(*arguments)
    assert outcome.status == 130
    assert outcome.err.splitlines()[-1] == "[interrupted]"
    assert "autoregressive" in outcome.out
    assert len(json.loads(record.read_text())["rows"]["autoregressive"]["answers"]) == 2
    interrupt_after(12)
    assert command(*arguments).status == 0
    assert len(json.loads(record.read_text())["rows"]["autoregressive"]["answers"]) == 4


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--rules", "nothing"), ("unknown rule 'nothing'", "joint")),
        (("--rules", "block@beam"), ("needs tokens drawn from distributions", "chain")),
        (("--method", "mtad"), ("compare takes no --method",)),
        (("--num-prompts", "9"), ("holds 4", "lower it")),
        (("--num-prompts", "0"), ("num_prompts must be", "got 0")),
        (("--max-prompt-characters", "2"), ("every prompt is longer than 2 characters",)),
        (("--record", "/dev/null/x"), ("record /dev/null/x",)),
    ],
)
def test_bad_input_is_one_sentence(
    command: RunCommand, prompts: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    only_sentence(command("compare", "--prompts-file", str(prompts), *arguments), *parts)


def test_prompts_must_be_named(command: RunCommand) -> None:
    only_sentence(command("compare"), "got no prompts", "--prompts-file")


def test_tables_are_aligned() -> None:
    assert format_table(["name", "n"], [["a", "10"], ["longer", "9"]]) == "name     n\na       10\nlonger   9"
