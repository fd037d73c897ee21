"""`mtad chat` with an engine that repeats what it is asked."""

import io
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from tests.unit.cli.conftest import RunCommand, Terminal, only_sentence
from tests.unit.cli.test_terminal import RESULT

from mtad.cli.chat import LEAVE_HINT, ChatSession
from mtad.cli.main import main
from mtad.config import METHOD_NAMES, GenerationOptions, ModelOptions
from mtad.errors import CapacityError
from mtad.structures import Piece

Script = Callable[[], None]


class FakeEngine:
    """Answers with the number of messages so far; `before_last` runs before the last piece."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[dict[str, str]], GenerationOptions]] = []
        self.before_last: Script = lambda: None
        self.num_closed = 0

    def stream(self, prompts: list[Any], generation: GenerationOptions) -> Generator[Piece, None, None]:
        (messages,) = prompts
        self.calls.append((list(messages), generation))
        return self._pieces(len(messages))

    def _pieces(self, number: int) -> Generator[Piece, None, None]:
        shared: dict[str, Any] = {"row": 0, "token_ids": (3,), "provenance": ("drafted",), "log_probs": (-1.0,)}
        try:
            yield Piece(text="answer ", segments=(("answer ", "drafted"),), **shared)
            self.before_last()
            yield Piece(text=str(number), segments=((str(number), "target"),), result=RESULT, **shared)
        finally:
            self.num_closed += 1


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


def session(fake: FakeEngine, **options: Any) -> ChatSession:
    return ChatSession(fake, GenerationOptions(), **options)  # type: ignore[arg-type]


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def contents(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_conversation_is_remembered(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    chat = session(fake, system="be brief")
    chat.handle("one")
    chat.handle("two")
    assert capsys.readouterr().out == "answer 2\nanswer 4\n"
    assert contents(fake.calls[1][0]) == ["be brief", "one", "answer 2", "two"]
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert fake.num_closed == 2


def test_reset_keeps_the_system_message(fake: FakeEngine) -> None:
    chat = session(fake, system="be brief")
    chat.handle("one")
    chat.handle("/reset")
    assert contents(chat.messages) == ["be brief"]
    chat.handle("two")
    assert contents(fake.calls[1][0]) == ["be brief", "two"]


def test_an_interrupt_stops_the_answer_and_not_the_program(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.before_last = interrupt
    type_lines(monkeypatch, "one", "/stats", "two")
    chat = session(fake)
    chat.loop()
    assert capsys.readouterr().out.splitlines() == [
        "answer  (stopped)",
        "(no finished answer yet)",
        "answer  (stopped)",
    ]
    assert contents(fake.calls[1][0]) == ["one", "answer ", "two"]
    assert fake.num_closed == 2


def test_an_interrupted_answer_does_not_replace_the_last_numbers(fake: FakeEngine) -> None:
    chat = session(fake)
    chat.handle("one")
    fake.before_last = interrupt
    chat.handle("two")
    assert chat.last_result is RESULT


def test_an_interrupt_at_the_prompt_says_how_to_leave(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: Iterator[Any] = iter([KeyboardInterrupt, "one", EOFError])

    def read(_: str) -> str:
        event = next(events)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr("builtins.input", read)
    session(fake).loop()
    assert capsys.readouterr().out == f"\n{LEAVE_HINT}\nanswer 1\n"


@pytest.mark.parametrize("where", ["stream", "_command"])
def test_an_interrupt_anywhere_leaves_the_program_running(
    where: str, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = session(fake)
    monkeypatch.setattr(fake if where == "stream" else chat, where, lambda *_: interrupt())
    type_lines(monkeypatch, "one" if where == "stream" else "/help")
    chat.loop()
    assert LEAVE_HINT in capsys.readouterr().out
    assert chat.messages == []


def test_an_error_is_reported_and_changes_nothing(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise CapacityError("prompt 1 has 9 tokens, but the models read at most 8")

    chat = session(fake)
    chat.handle("one")
    before = list(chat.messages)
    fake.before_last = fail
    chat.handle("two")
    assert chat.messages == before
    message = "mtad: prompt 1 has 9 tokens, but the models read at most 8; /reset starts a new conversation\n"
    assert capsys.readouterr().err == message


def test_the_method_and_the_threshold_can_change(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    chat = session(fake)
    for line in ("/method mtad", "/threshold 0.9", "/threshold .25", "hi"):
        chat.handle(line)
    assert capsys.readouterr().out == "(method mtad)\n(threshold 0.9)\n(threshold 0.25)\nanswer 1\n"
    assert fake.calls[0][1] == GenerationOptions(method="mtad", threshold=0.25)


def test_the_method_without_a_name_lists_all(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    session(fake).handle("/method")
    assert capsys.readouterr().out == f"(method mmtad; others: {', '.join(METHOD_NAMES)})\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/method magic", "mtad: method must be one of mmtad, mtad, "),
        ("/threshold 0", "mtad: threshold must be a number > 0 and <= 1, got 0"),
        ("/threshold 2", "mtad: threshold must be a number > 0 and <= 1, got 2"),
        ("/threshold nan", "mtad: threshold must be a number > 0 and <= 1, got nan"),
        ("/threshold much", "mtad: threshold must be a number > 0 and <= 1, got 'much'"),
        ("/threshold", "mtad: threshold must be a number > 0 and <= 1, got ''"),
    ],
)
def test_a_bad_value_is_refused(line: str, expected: str, fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    chat = session(fake)
    chat.handle(line)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(expected)
    assert chat.generation == GenerationOptions()


@pytest.mark.parametrize("line", ["/foo", "/", "/ reset", "//"])
def test_an_unknown_command_points_to_help(line: str, fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    session(fake).handle(line)
    out = capsys.readouterr().out
    assert "/help lists the commands" in out or out == "(conversation forgotten)\n"
    assert fake.calls == []


def test_help_names_every_command(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    session(fake).handle("/help")
    out = capsys.readouterr().out
    assert all(name in out for name in ("/help", "/reset", "/method", "/threshold", "/stats", "/quit", "Ctrl-C"))


def test_stats_show_the_last_answer(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    chat = session(fake)
    chat.handle("/stats")
    chat.handle("one")
    chat.handle("/stats")
    assert capsys.readouterr().out.splitlines() == [
        "(no finished answer yet)",
        "answer 1",
        "[40 tokens · 2.11/call · kept 53/37/21/0% · 8.0/s · perplexity 2.51]",
        "mmtad: prompt 9 tokens, prefill 0.10 s, decoding 5.00 s",
    ]


@pytest.mark.parametrize("lines", [["one", "/quit", "two"], ["one"], ["", "  ", "one"]])
def test_quit_and_the_end_of_input_leave(
    lines: list[str], fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, *lines)
    session(fake).loop()
    assert capsys.readouterr().out == "answer 1\n"
    assert len(fake.calls) == 1


def test_a_line_that_is_not_utf8_is_reported(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events = iter([UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"), EOFError()])

    def read(_: str) -> str:
        raise next(events)

    monkeypatch.setattr("builtins.input", read)
    session(fake).loop()
    assert "not UTF-8" in capsys.readouterr().err


def test_the_statistics_follow_an_answer_on_a_terminal(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    session(fake).handle("one")
    assert terminal.getvalue() == "[40 tokens · 2.11/call · kept 53/37/21/0% · 8.0/s · perplexity 2.51]\n"


def test_the_command_loads_the_draft_for_every_method(
    loads: list[tuple[ModelOptions, bool]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "tell me", "/method mtad", "and more")
    arguments = ["--method", "autoregressive", "--max-new-tokens", "4", "--ignore-eos"]
    assert main(["chat", *arguments]) == 0
    assert loads == [(ModelOptions(), True)]
    captured = capsys.readouterr()
    assert "(method mtad)" in captured.out
    assert captured.err == ""


def test_a_method_that_fills_no_tree_may_draft_deep(command: RunCommand) -> None:
    assert command("chat", "--method", "speculative", "--gamma", "32").status == 0


def test_bad_settings_are_refused_before_the_chat(command: RunCommand) -> None:
    only_sentence(command("chat", "--gamma", "0"), "gamma must be")
