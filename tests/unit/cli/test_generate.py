"""`mtad generate` over a tiny engine: prompts in, text or JSON out, and every way to be interrupted."""

import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.cli.conftest import RunCommand, Terminal, only_sentence

from mtad.api import Engine
from mtad.cli.main import main
from mtad.config import ModelOptions
from mtad.errors import CapacityError
from mtad.models.intersection import VocabularyMap

SHORT = ("--max-new-tokens", "12", "--gamma", "3", "--beam-width", "2", "--ignore-eos")
KEYS = {
    "index",
    "prompt",
    "text",
    "token_ids",
    "provenance",
    "log_probs",
    "top_log_probs",
    "joint_log_ratios",
    "accepted_lengths",
    "finish_reason",
    "method",
    "config",
    "stats",
}
STATS_KEYS = {
    "num_tokens",
    "target_calls",
    "tokens_per_call",
    "acceptance_by_depth",
    "perplexity",
    "prefill_s",
    "decode_s",
    "tokens_per_s",
}


def documents(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.txt"
    path.write_text("why is the sky blue?\na\ntell me\n", encoding="utf-8")
    return str(path)


def test_the_answer_is_on_standard_output_and_the_statistics_are_not(command: RunCommand, engine: Engine) -> None:
    outcome = command("generate", "tell me", *SHORT)
    expected = engine.generate("tell me", max_new_tokens=12, gamma=3, beam_width=2, ignore_eos=True)
    assert outcome.status == 0
    assert outcome.out == expected.text + "\n"
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("[12 tokens, cut · ")


def test_json_holds_everything(command: RunCommand) -> None:
    outcome = command("generate", "tell me", "--json", *SHORT)
    (document,) = documents(outcome.out)
    assert set(document) == KEYS
    assert set(document["stats"]) >= STATS_KEYS
    assert (document["index"], document["prompt"], document["method"]) == (0, "tell me", "mmtad")
    assert document["config"]["gamma"] == 3
    assert document["config"]["models"]["device"] == "cpu"
    assert outcome.err == ""


def test_json_comes_in_the_order_of_the_prompts(command: RunCommand, questions: str) -> None:
    for batch_size in ("1", "2", "8"):
        outcome = command("generate", "--prompts-file", questions, "--json", "--batch-size", batch_size, *SHORT)
        found = documents(outcome.out)
        assert [item["index"] for item in found] == [0, 1, 2]
        assert [item["prompt"] for item in found] == ["why is the sky blue?", "a", "tell me"]


@pytest.mark.parametrize(
    ("content", "prompt"),
    [(b"tell me", "tell me"), (b"tell me\n", "tell me"), (b"\xef\xbb\xbfa\nb\r\n", "a\nb"), (b"a\n\n", "a\n")],
)
def test_standard_input_is_one_prompt(content: bytes, prompt: str, command: RunCommand) -> None:
    outcome = command("generate", "--json", *SHORT, stdin=content)
    assert documents(outcome.out)[0]["prompt"] == prompt


def test_raw_chat_and_system_reach_the_prompt(command: RunCommand, engine: Engine) -> None:
    def prompt_tokens(*flags: str) -> int:
        (document,) = documents(command("generate", "tell me", "--json", *flags, *SHORT).out)
        return int(document["stats"]["num_prompt_tokens"])

    chat = len("user: tell me\nassistant: ")
    assert prompt_tokens("--raw") == len("tell me")
    assert prompt_tokens("--chat") == prompt_tokens() == chat
    assert prompt_tokens("--system", "be brief") == chat + len("system: be brief\n")


@pytest.mark.parametrize(
    ("flags", "wants_draft"),
    [
        ([], True),
        (["--method", "autoregressive"], False),
        (["--method", "mtjd"], False),
        (["--drafter", "prompt_lookup"], False),
        (["--drafter", "early_exit"], False),
        (["--exit-layers", "1"], False),
    ],
)
def test_only_methods_that_draft_load_a_draft(
    flags: list[str], wants_draft: bool, command: RunCommand, loads: list[tuple[ModelOptions, bool]]
) -> None:
    command("generate", "tell me", "--device", "cpu", "--dtype", "float32", *flags, *SHORT)
    assert loads == [(ModelOptions(device="cpu", dtype="float32"), wants_draft)]


@pytest.mark.parametrize(
    ("arguments", "stdin", "parts"),
    [
        ([""], None, ["the prompt is empty; give some text"]),
        ([" \n"], None, ["the prompt is empty"]),
        ([], b"", ["standard input holds no prompt; give one as an argument"]),
        ([], b"\n\n", ["standard input holds no prompt"]),
        ([], b"caf\xe9", ["standard input is not UTF-8 (byte 3)"]),
        (["hi", "--prompts-file", "x.txt"], None, ["got both a prompt and --prompts-file"]),
        (["--prompts-file", "no/such.txt"], None, ["no/such.txt", "No such file or directory"]),
        (["hi", "--json", "--stream"], None, ["got both --stream and --json"]),
        (["hi", "--method", "mtjd", "--drafter", "chain"], None, ["mtjd takes no drafter"]),
        (
            ["hi", "--typical-delta", "0.2"],
            None,
            ["typical_delta is a dial of typical, got verifier joint; leave it out"],
        ),
        (["hi", "--verifier", "block", "--drafter", "chain", "--threshold", "0.2"], None, ["got verifier block"]),
        (["hi", "--beam-acceptance", "0.2"], None, ["beam_acceptance is a dial of method dynamic_beam"]),
        (["hi", "--method", "mtjd", "--threshold", "0.2"], None, ["threshold is a dial of", "got method mtjd"]),
        (["hi", "--target", "./model"], None, ["method mmtad needs a draft model; name one with --draft"]),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    arguments: list[str],
    stdin: bytes | None,
    parts: list[str],
    command: RunCommand,
    loads: list[tuple[ModelOptions, bool]],
) -> None:
    only_sentence(command("generate", *arguments, stdin=stdin), *parts)
    assert loads == []


def test_a_terminal_without_a_prompt_is_told_what_to_do(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["generate"]) == 2
    assert capsys.readouterr().err == (
        "mtad: no prompt; give one as an argument, with --prompts-file, or on standard input\n"
    )


def test_streaming_shows_one_prompt_only(command: RunCommand, questions: str) -> None:
    only_sentence(command("generate", "--prompts-file", questions, "--stream"), "--stream shows one prompt, got 3")


def test_a_prompt_that_is_too_long_is_one_sentence(command: RunCommand) -> None:
    outcome = command("generate", "--raw", "x" * 500)
    only_sentence(outcome, "prompt 1 has 500 tokens, but the models read at most 128")


def test_exhausted_memory_is_one_sentence(command: RunCommand, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(engine.models.target, "score_tree", fail)
    only_sentence(command("generate", "tell me"), "out of memory while decoding; lower --batch-size")


def test_a_terminal_gets_a_coloured_stream(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    command("generate", "tell me", *SHORT)
    shown = terminal.getvalue()
    assert "\x1b[32m" in shown
    plain = engine.generate("tell me", max_new_tokens=12, gamma=3, beam_width=2, ignore_eos=True).text
    assert shown.replace("\x1b[32m", "").replace("\x1b[0m", "") == plain + "\n"


@pytest.mark.parametrize("flags", [["--stream"], ["--no-stream"], ["--color", "always"]])
def test_every_way_of_showing_shows_the_same_text(flags: list[str], command: RunCommand) -> None:
    plain = command("generate", "tell me", *SHORT).out
    shown = command("generate", "tell me", *flags, *SHORT).out
    assert shown.replace("\x1b[32m", "").replace("\x1b[0m", "") == plain
    assert ("\x1b[" in shown) == ("always" in flags)


@pytest.mark.parametrize("flags", [["--stream"], ["--no-stream"]])
def test_an_interrupt_keeps_the_partial_text(
    flags: list[str], command: RunCommand, interrupt_after: Callable[[int], None]
) -> None:
    whole = command("generate", "tell me", *SHORT).out
    interrupt_after(2)
    outcome = command("generate", "tell me", *flags, *SHORT)
    assert outcome.status == 130
    assert outcome.err == "[interrupted]\n"
    partial = outcome.out.removesuffix("\n")
    assert 0 < len(partial) < len(whole)
    assert whole.startswith(partial)


def test_an_interrupt_keeps_finished_and_partial_documents(
    command: RunCommand, interrupt_after: Callable[[int], None], questions: str
) -> None:
    arguments = ("generate", "--prompts-file", questions, "--json", "--batch-size", "1", "--method", "autoregressive")
    whole = documents(command(*arguments, *SHORT).out)
    interrupt_after(15)
    outcome = command(*arguments, *SHORT)
    assert outcome.status == 130
    finished, partial = documents(outcome.out)
    assert finished["token_ids"] == whole[0]["token_ids"]
    assert (partial["index"], partial["finish_reason"]) == (1, "cancelled")
    assert partial["token_ids"] == whole[1]["token_ids"][:3]
    assert set(partial) >= KEYS - {"joint_log_ratios", "accepted_lengths"}
    assert set(partial["stats"]) >= STATS_KEYS
    assert partial["config"] == whole[1]["config"]


def test_an_interrupted_batch_shows_every_row_it_began(
    command: RunCommand, interrupt_after: Callable[[int], None], questions: str
) -> None:
    interrupt_after(2)
    outcome = command("generate", "--prompts-file", questions, "--json", *SHORT)
    assert outcome.status == 130
    assert [(item["index"], item["finish_reason"]) for item in documents(outcome.out)] == [
        (0, "cancelled"),
        (1, "cancelled"),
        (2, "cancelled"),
    ]


def test_a_draft_with_another_vocabulary_is_announced(
    command: RunCommand, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([0, -1, 2])
    models = replace(engine.models, vocabulary=VocabularyMap(draft_ids=ids, fed_ids=ids, num_tokens=3))
    monkeypatch.setattr("mtad.models.loading.load_models", lambda *_, **__: models)
    assert "vocabulary" not in command("generate", "tell me", *SHORT).err
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    command("generate", "tell me", "--color", "never", *SHORT)
    assert "the draft has another vocabulary and drafts only 2 of the target's 3 tokens\n" in terminal.getvalue()


def test_an_interrupt_while_loading_is_short(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch, loads: object
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtad.models.loading.load_models", interrupt)
    outcome = command("generate", "tell me")
    assert (outcome.status, outcome.out, outcome.err) == (130, "", "mtad: interrupted\n")


def test_a_load_error_is_one_sentence(command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CapacityError("no memory to load the target")

    monkeypatch.setattr("mtad.models.loading.load_models", fail)
    only_sentence(command("generate", "tell me"), "mtad: no memory to load the target")


@pytest.mark.parametrize("flags", [[], ["--stream"], ["--json"]])
def test_a_reader_that_has_gone_ends_the_program_quietly(
    flags: list[str],
    loads: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["generate", "tell me", "--color", "never", *flags, *SHORT]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(
    loads: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["generate", "tell me", "--json", *SHORT]) == 1
    assert capsys.readouterr().err == (
        "mtad: the output cannot be written (No space left on device); free some space\n"
    )


def test_an_answer_that_the_terminal_cannot_encode_is_escaped(
    loads: object, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "tokenizer", engine.tokenizer)
    monkeypatch.setattr(Engine, "_decode", lambda _self, token_ids: "é" * len(token_ids))
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert main(["generate", "tell me", "--max-new-tokens", "2", "--ignore-eos"]) == 0
    assert content.getvalue() == b"\\xe9\\xe9\n"
