"""Percentiles, losses and ratios of a record of load."""

from typing import Any

import pytest

from mtad.results.server_load import summarize_load


def reply(**changes: Any) -> dict[str, Any]:
    whole = {"status": 200, "error": None, "first_s": 0.2, "total_s": 1.0, "gaps": [(0.3, 3), (0.1, 1)]}
    counts = {"num_tokens": 6, "target_calls": 3, "num_prompt_tokens": 10, "num_reused": 5}
    return whole | counts | changes


def sample(streams: int | None, wall_s: float, replies: list[dict[str, Any]], **server: float) -> dict[str, Any]:
    load = {"streams": streams, "label": f"{streams}", "prompt_tokens": 0, "new_tokens": 6, "temperature": 1.0}
    return {"load": load, "wall_s": wall_s, "replies": replies, "server": server}


def test_a_load_is_measured_by_its_whole_answers() -> None:
    bad = [reply(status=0, error="broken"), reply(status=429, error="too many"), reply(error="cut", num_tokens=3)]
    steps = {"mtad_steps_total": 10.0, "mtad_step_rows_total": 25.0}
    record = {"samples": [sample(1, 2.0, [reply()]), sample(8, 1.0, [reply(), reply(first_s=0.4), *bad], **steps)]}
    alone, many = summarize_load(record)
    assert (alone.tokens_per_s, alone.ratio, alone.rows_per_step) == (3.0, 1.0, None)
    assert (many.num_requests, many.num_lost, many.num_refused) == (5, 2, 1)
    assert (many.tokens_per_s, many.ratio, many.rows_per_step) == (12.0, 4.0, 2.5)
    assert many.first_token_ms is not None
    assert many.first_token_ms[0] == pytest.approx(300)
    assert many.inter_token_ms == pytest.approx((100, 100, 100))
    assert (many.tokens_per_call, many.reused_share) == (2.0, 0.5)


def test_only_the_same_prompts_and_answers_are_compared() -> None:
    other = sample(1, 2.0, [reply()])
    other["load"]["new_tokens"] = 7
    assert summarize_load({"samples": [other, sample(8, 1.0, [reply()])]})[1].ratio is None


def test_nothing_whole_has_no_percentiles() -> None:
    [line] = summarize_load({"samples": [sample(2, 1.0, [reply(error="broken", status=0)])]})
    assert (line.num_lost, line.first_token_ms, line.tokens_per_call, line.tokens_per_s) == (1, None, None, 0.0)
