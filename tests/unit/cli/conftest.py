"""The command line over a tiny engine, in this process."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.tiny_engine import tiny_engine

from mtad.api import Engine
from mtad.cli.main import main
from mtad.config import ModelOptions
from mtad.models import loading


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


class Terminal(io.StringIO):
    """Text that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class RunCommand(Protocol):
    """Runs `mtad` with the given words."""

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Outcome: ...


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def loads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[ModelOptions, bool]]:
    """Every call to load models is answered with the tiny pair and noted here."""
    calls: list[tuple[ModelOptions, bool]] = []

    def load(options: ModelOptions, *, wants_draft: bool = True) -> Any:
        calls.append((options, wants_draft))
        return engine.models

    monkeypatch.setattr(loading, "load_models", load)
    return calls


@pytest.fixture
def command(
    loads: list[tuple[ModelOptions, bool]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunCommand:
    def run(*arguments: str, stdin: bytes | None = None) -> Outcome:
        text = io.TextIOWrapper(io.BytesIO(stdin or b""), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", text)
        try:
            status = main(arguments)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def interrupt_after(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Press Ctrl-C in the target call after so many."""

    def arm(num_calls: int) -> None:
        score_tree = type(engine.models.target).score_tree
        calls = iter(range(num_calls))

        def score(*arguments: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return score_tree(engine.models.target, *arguments)

        monkeypatch.setattr(engine.models.target, "score_tree", score)

    return arm


def only_sentence(outcome: Outcome, *parts: str) -> None:
    """Assert that a command was refused with one sentence that holds all of `parts`."""
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("mtad")
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """A counter of constant power, 200 W of the GPU and 50 W of the CPU package, that ticks every millisecond."""
    watts = {"gpu": 200.0, "cpu_package": 50.0}
    path = tmp_path / "counter.json"
    seconds = [tick / 1000 for tick in range(1001)]
    joules = {scope: [power * moment for moment in seconds] for scope, power in watts.items()}
    path.write_text(json.dumps({"seconds": seconds, "joules": joules}))
    return f"replay:{path}"
