"""Rows that end in any order come out in the order of the prompts, and an interrupt loses nothing."""

import io
import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.cli.test_terminal import RESULT

from mtad.cli.output import JsonOutput, StreamOutput, TextOutput, to_json
from mtad.structures import Piece

PROMPTS = ("first", "second\nline", [{"role": "user", "content": "third"}])


def piece(row: int, text: str, *, is_last: bool = False) -> Piece:
    return Piece(
        row=row,
        text=text,
        token_ids=(row,),
        provenance=("drafted",),
        log_probs=(-1.0,),
        segments=((text, "drafted"),),
        finish_reason="stop" if is_last else None,
        result=replace(RESULT, text=text) if is_last else None,
    )


def json_output() -> JsonOutput:
    return JsonOutput(PROMPTS, method="mmtad", config={"gamma": 4})


def documents(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_documents_come_in_the_order_of_the_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    with json_output() as output:
        output.take(piece(2, "c", is_last=True))
        output.take(piece(0, "a"))
        assert documents(capsys) == []
        output.take(piece(0, "b", is_last=True))
        assert [item["index"] for item in documents(capsys)] == [0]
        output.take(piece(1, "d", is_last=True))
    found = documents(capsys)
    assert [(item["index"], item["prompt"]) for item in found] == [(1, PROMPTS[1]), (2, PROMPTS[2])]


def test_an_interrupt_shows_finished_and_partial_rows_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with json_output() as output:
        output.take(piece(2, "c", is_last=True))
        output.take(piece(0, "a"))
        output.take(piece(0, "b"))
        output.interrupt()
    captured = capsys.readouterr()
    partial, finished = (json.loads(line) for line in captured.out.splitlines())
    assert captured.err == "[interrupted]\n"
    assert (partial["index"], partial["text"], partial["finish_reason"]) == (0, "ab", "cancelled")
    assert (finished["index"], finished["text"], finished["finish_reason"]) == (2, "c", "stop")
    assert partial["stats"]["num_tokens"] == 2
    assert partial["stats"]["perplexity"] == pytest.approx(math.e)
    assert partial["stats"]["tokens_per_s"] is None
    assert (partial["method"], partial["config"]) == ("mmtad", {"gamma": 4})


def test_several_texts_get_a_heading_each(capsys: pytest.CaptureFixture[str]) -> None:
    with TextOutput(PROMPTS, color="never") as output:
        for row in (1, 2, 0):
            output.take(piece(row, f"answer {row}", is_last=True))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "=== 1/3: first",
        "answer 0",
        "=== 2/3: second line",
        "answer 1",
        "=== 3/3: third",
        "answer 2",
    ]
    assert len(captured.err.splitlines()) == 3


def test_a_long_heading_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    with TextOutput(["x" * 100, "y"], color="never") as output:
        output.take(piece(0, "a", is_last=True))
    assert capsys.readouterr().out.splitlines()[0] == "=== 1/2: " + "x" * 57 + "..."


def test_one_text_stands_alone_and_may_be_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    with TextOutput(["x"], color="always") as output:
        output.take(piece(0, "answer", is_last=True))
    assert capsys.readouterr().out == "\x1b[32manswer\x1b[0m\n"


def test_a_stream_writes_at_once_and_ends_its_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    with StreamOutput(color="never") as output:
        output.take(piece(0, "a"))
        assert capsys.readouterr().out == "a"
        output.take(piece(0, "b\n", is_last=True))
    captured = capsys.readouterr()
    assert captured.out == "b\n"
    assert captured.err.startswith("[40 tokens")


def test_an_interrupted_stream_keeps_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with StreamOutput(color="never") as output:
        output.take(piece(0, "par"))
        output.interrupt()
    assert capsys.readouterr() == ("par\n", "[interrupted]\n")


def test_an_interrupt_before_the_first_token_leaves_standard_output_empty(capsys: pytest.CaptureFixture[str]) -> None:
    with StreamOutput(color="never") as output:
        output.interrupt()
    assert capsys.readouterr() == ("", "[interrupted]\n")


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", '"é😀"'), ("latin-1", '"\\u00e9\\ud83d\\ude00"')])
def test_json_is_whole_in_every_encoding(encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert to_json({"text": "é😀"}) == f'{{"text": {expected}}}'


def test_json_has_no_word_for_infinity() -> None:
    assert to_json({"a": [math.inf, (math.nan, 1.5)]}) == '{"a": [null, [null, 1.5]]}'
