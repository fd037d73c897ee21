"""Colours only where they are wanted, and one line of statistics."""

import io
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.cli.conftest import Terminal

from mtad.cli.terminal import DRAFTED, FAINT, RESET, color_segments, note, statistics_line, wants_color
from mtad.structures import DecodingStats, GenerationResult

STATS = DecodingStats(
    num_prompt_tokens=9,
    num_tokens=40,
    target_calls=19,
    tokens_per_call=40 / 19,
    acceptance_by_depth=(0.5263, 0.3684, 0.2105, 0.0),
    perplexity=2.514,
    prefill_s=0.1,
    decode_s=5.0,
    draft_s=1.0,
    verify_s=3.0,
    tokens_per_s=8.0,
)
RESULT = GenerationResult(
    text="x",
    token_ids=(3, 4),
    provenance=("drafted", "target"),
    log_probs=(-1.0, -1.0),
    joint_log_ratios=(0.0,),
    accepted_lengths=(1,),
    finish_reason="stop",
    method="mmtad",
    stats=STATS,
)


@pytest.mark.parametrize(
    ("choice", "is_terminal", "environment", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1", "TERM": "dumb"}, True),
        ("never", True, {}, False),
    ],
)
def test_colour_follows_the_flag_then_the_terminal(
    choice: str, is_terminal: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if is_terminal else io.StringIO()
    assert wants_color(choice, stream) is expected


def test_drafted_text_is_coloured_and_the_rest_is_not() -> None:
    segments = [("one", "drafted"), (" two", "target")]
    assert color_segments(segments, is_colored=True) == f"{DRAFTED}one{RESET} two"
    assert color_segments(segments, is_colored=False) == "one two"


def test_the_statistics_are_one_short_line() -> None:
    line = statistics_line(RESULT, is_colored=False)
    assert line == "[40 tokens · 2.11/call · kept 53/37/21/0% · 8.0/s · perplexity 2.51]"
    assert len(line) <= 80


def test_an_answer_cut_at_the_limit_says_so() -> None:
    assert statistics_line(replace(RESULT, finish_reason="length"), is_colored=False).startswith("[40 tokens, cut · ")


def test_a_method_without_drafts_shows_no_acceptance() -> None:
    result = replace(RESULT, stats=replace(STATS, acceptance_by_depth=(), num_tokens=1, tokens_per_call=1.0))
    assert statistics_line(result, is_colored=False) == "[1 token · 1.00/call · 8.0/s · perplexity 2.51]"


def test_the_colour_of_the_acceptance_explains_the_colour_of_the_text() -> None:
    line = statistics_line(RESULT, is_colored=True)
    assert f"{DRAFTED}kept 53/37/21/0%{RESET}" in line
    assert line.startswith(FAINT)
    assert line.endswith(RESET)


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal(), {}, f"{FAINT}loading{RESET}\n"),
        (Terminal(), {"NO_COLOR": "1"}, "loading\n"),
        (io.StringIO(), {}, ""),
    ],
)
def test_remarks_are_for_people(
    stream: Any, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream)
    note("loading", "auto")
    assert stream.getvalue() == expected
