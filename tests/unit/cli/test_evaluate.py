"""`mtad evaluate` scores, keeps everything, and goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.data_folder import write_data_folder
from tests.tiny_engine import tiny_engine
from tests.unit.cli.conftest import RunCommand, only_sentence

from mtad.api import Engine

SHORT = ("--max-new-tokens", "6", "--gamma", "2", "--beam-width", "2")
FAST = ("mt_bench", "spec_bench")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(max_positions=2048)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_data_folder(tmp_path / "data")
    for path in folder.glob("**/question.jsonl"):
        path.write_text(path.read_text().replace("1+1?", "one and one"))
    return folder


def test_every_task_runs_and_is_kept(command: RunCommand, data: Path, tmp_path: Path) -> None:
    words = ("--tasks", "spider,humaneval,mbpp", "gsm8k", "xsum", "wikitext", "mt_bench", "--shots", "0")
    rules = ("--rules", "autoregressive", "autoregressive:temperature=0", "mmtad", "--num-seeds", "2")
    arguments = (*words, *rules, "--allow-code-execution", "--out", str(tmp_path / "run"), *SHORT)
    outcome = command("evaluate", "--data", str(data), *arguments)
    assert outcome.status == 0, outcome.err
    assert len(outcome.out.splitlines()) == 1 + 7 * 3
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["is_complete"] is True
    rows = {(row["task"], row["contender"]): row for row in record["rows"]}
    orders = {task: [label for other, label in rows if other == task] for task, _ in rows}
    assert len({tuple(order) for order in orders.values()}) == 1, "contenders stand in one order for every task"
    assert rows["spider", "mmtad"]["num_seeds"] == 2
    assert rows["spider", "autoregressive:temperature=0"]["num_seeds"] == 1
    assert rows["spider", "mmtad"]["groups"] == {"shop": [0.0, 3]}
    assert rows["spider", "mmtad"]["score_without_empty"]["value"] == 0.0
    assert rows["humaneval", "mmtad"]["pass_at"] == {"1": 0.0, "2": 0.0}
    assert rows["wikitext", "mmtad"]["score"] is None
    assert rows["wikitext", "mmtad"]["decoding"]["perplexity_change"] is not None
    assert rows["wikitext", "mmtad"]["diversity"]["similarity"] <= 1
    assert rows["gsm8k", "autoregressive"]["p_value"] is None
    answer = json.loads((tmp_path / "run/mt_bench/model_answer/mmtad.seed0.jsonl").read_text().splitlines()[0])
    assert len(answer["choices"][0]["turns"]) == 2
    gold = (tmp_path / "run/spider/gold.txt").read_text().splitlines()
    assert gold[0] == "SELECT name FROM fruit\tshop"
    assert len((tmp_path / "run/spider/mmtad.seed1.pred.txt").read_text().splitlines()) == 3
    assert (tmp_path / "run/items.parquet").exists()


def test_an_interrupted_run_goes_on(
    command: RunCommand, data: Path, tmp_path: Path, interrupt_after: Callable[[int], None]
) -> None:
    def arguments(out: str) -> tuple[str, ...]:
        named = ("--data", str(data), "--tasks", *FAST, "--rules", "autoregressive", "mmtad", "--batch-size", "1")
        return ("evaluate", *named, "--out", str(tmp_path / out), *SHORT)

    assert command(*arguments("whole")).status == 0
    interrupt_after(20)
    outcome = command(*arguments("broken"))
    assert outcome.status == 130
    assert "goes on from" in outcome.err.splitlines()[-1]
    log = tmp_path / "broken/items.jsonl"
    num_kept = len(log.read_text().splitlines())
    assert 0 < num_kept < 10
    log.write_bytes(log.read_bytes()[:-9])
    interrupt_after(10**6)
    assert command(*arguments("broken")).status == 0
    assert table(tmp_path / "broken") == table(tmp_path / "whole")
    record = json.loads((tmp_path / "broken/run.json").read_text())
    assert len(record["continued"]) == 1


def test_thresholds_multiply_the_rules_that_read_them(command: RunCommand, data: Path, tmp_path: Path) -> None:
    named = ("--rules", "block", "mmtad", "mtad:threshold=1", "--thresholds", "0.2", "0.9", "--limit", "1")
    outcome = command(
        "evaluate",
        "--data",
        str(data),
        "--tasks",
        "spec_bench",
        *named,
        "--out",
        str(tmp_path / "run"),
        *SHORT,
        "--json",
    )
    assert outcome.status == 0, outcome.err
    found = [row["contender"] for row in json.loads(outcome.out)["rows"]]
    assert found == ["block", "mmtad:threshold=0.2", "mmtad:threshold=0.9", "mtad:threshold=1"]


def test_drafts_multiply_what_needs_one(command: RunCommand, data: Path, tmp_path: Path) -> None:
    named = ("--rules", "autoregressive", "mmtad", "--drafts", "./nano", "./small", "--limit", "1")
    outcome = command(
        "evaluate",
        "--data",
        str(data),
        "--tasks",
        "spec_bench",
        *named,
        "--out",
        str(tmp_path / "run"),
        *SHORT,
        "--json",
    )
    assert outcome.status == 0, outcome.err
    record = json.loads(outcome.out)
    assert [row["contender"] for row in record["rows"]] == ["autoregressive", "mmtad (nano)", "mmtad (small)"]
    assert record["contenders"]["mmtad (small)"]["draft"] == "./small"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--tasks", "chess"), ("unknown task 'chess'", "spider")),
        (("--tasks", "humaneval"), ("runs what the model writes", "--allow-code-execution")),
        (("--tasks", "xsum", "--shots", "2"), ("shots of xsum must be at most 0",)),
        (("--tasks", "xsum", "--limit", "0"), ("limit must be", "got 0")),
        (("--tasks", "xsum", "--rules", "nothing"), ("unknown rule 'nothing'",)),
        (("--tasks", "xsum", "--thresholds", "2"), ("threshold must be", "got 2")),
        (("--tasks", "xsum", "--method", "mtad"), ("evaluate takes no --method",)),
        (("--tasks", "xsum", "--drafts", "a/x", "b/x"), ("different names",)),
        (("--tasks", "xsum", "--data", "/nowhere"), ("data folder /nowhere is not there",)),
        ((), ("needs --data DIR and --tasks",)),
    ],
)
def test_bad_input_is_one_sentence(
    command: RunCommand, data: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    only_sentence(command("evaluate", "--data", str(data), *arguments), *parts)


def test_another_run_in_the_folder_is_refused(command: RunCommand, data: Path, tmp_path: Path) -> None:
    base = ("evaluate", "--data", str(data), "--tasks", "spec_bench", "--rules", "mtad", "--out", str(tmp_path / "run"))
    assert command(*base, *SHORT).status == 0
    only_sentence(command(*base, *SHORT, "--batch-size", "2"), "is of another run (its workload differs")
    only_sentence(command(*base, *SHORT, "--limit", "1"), "is of another run (its tasks differs")
    only_sentence(command(*base, *SHORT, "--threshold", "0.9"), "has mtad with other settings")


def table(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run without what the clock says."""
    rows: list[dict[str, Any]] = json.loads((folder / "run.json").read_text())["rows"]
    for row in rows:
        for name in ("decode_s", "tokens_per_s", "speed_ratio"):
            del row["decoding"][name]
    return sorted(rows, key=lambda row: (row["task"], row["contender"]))


KILLED = """
import sys
from tests.tiny_engine import tiny_engine
from mtad.models import loading
engine = tiny_engine()
loading.load_models = lambda options, wants_draft=True: engine.models
from mtad.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_killed_outright_ends_in_the_same_table(data: Path, tmp_path: Path) -> None:
    def start(out: str) -> "subprocess.Popen[bytes]":
        named = ("--data", str(data), "--tasks", *FAST, "--rules", "autoregressive", "mmtad", "--batch-size", "1")
        words = ("evaluate", *named, "--num-seeds", "3", "--out", str(tmp_path / out), *SHORT)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    whole, killed = start("whole"), start("killed")
    log = tmp_path / "killed/items.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") > 4):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 4 < log.read_bytes().count(b"\n") < 30
    assert start("killed").wait() == 0
    assert whole.wait() == 0
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
