"""The table of a comparison is made from its answers alone."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mtad.errors import ConfigError
from mtad.results.comparison import summaries_to_json, summarize
from mtad.results.files import read_json, write_json


def answer(prompt: int, tokens: int, calls: int, log_prob: float, kept: list[int], refused: float | None = 0.0) -> Any:
    return {
        "prompt": prompt,
        "num_tokens": tokens,
        "target_calls": calls,
        "log_prob_sum": log_prob,
        "kept_lengths": kept,
        "refused_sum": refused,
        "finish_reason": "length" if prompt == 0 else "stop",
    }


def record(**rows: list[Any]) -> dict[str, Any]:
    return {
        "rows": {
            label: {
                "answers": answers,
                "batches": [[0, 0]],
                "batch_tokens": [sum(answer["num_tokens"] for answer in answers)],
                "decode_s": [2.0 if label == "joint" else 3.0],
            }
            for label, answers in rows.items()
        }
    }


SAMPLING = [answer(0, 10, 10, -10.0, [10]), answer(1, 30, 30, -15.0, [30])]
JOINT = [answer(0, 12, 4, -6.0, [1, 0, 1, 2], 0.8), answer(1, 28, 12, -14.0, [4, 2, 4, 2], 0.8)]


def test_figures_are_token_weighted_over_all_answers() -> None:
    _, joint = summarize(record(autoregressive=SAMPLING, joint=JOINT))
    assert joint.tokens_per_call.value == 40 / 16
    assert joint.perplexity.value == pytest.approx(math.exp(20 / 40))
    assert joint.perplexity_of_mean_document == pytest.approx(math.exp(0.5))
    assert joint.acceptance_by_depth == (11 / 16, 9 / 16, 4 / 16)
    assert joint.refused_share == pytest.approx(1.6 / 24)
    assert (joint.tokens_per_answer, joint.cut_share, joint.num_answers) == (20, 0.5, 2)
    assert (joint.decode_s, joint.tokens_per_s) == (2.0, 20.0)
    assert joint.speed_ratio is not None
    assert joint.speed_ratio.value == pytest.approx(1.5)


def test_refusals_that_were_not_counted_have_no_share() -> None:
    [beams] = summarize(record(dynamic_beam=[answer(0, 9, 3, -4.0, [1, 2], None), answer(1, 9, 9, -4.0, [9], 0.0)]))
    assert beams.refused_share is None
    assert beams.acceptance_by_depth


def test_the_change_is_against_single_token_sampling() -> None:
    baseline, joint = summarize(record(autoregressive=SAMPLING, joint=JOINT))
    assert baseline.perplexity_change is None
    assert baseline.refused_share is None
    assert joint.perplexity_change is not None
    assert joint.perplexity_change.value == pytest.approx(math.exp(20 / 40 - 25 / 40) - 1)


def test_a_run_cut_short_is_compared_on_the_prompts_both_have() -> None:
    joint = summarize(record(autoregressive=SAMPLING[:1], joint=JOINT))[1]
    assert joint.perplexity_change is not None
    assert joint.perplexity_change.value == pytest.approx(math.exp(6 / 12 - 1) - 1)


def test_without_a_baseline_or_answers_there_is_no_change_and_no_row() -> None:
    (joint,) = summarize(record(joint=JOINT, block=[]))
    assert joint.perplexity_change is None
    json.dumps(summaries_to_json([joint]))


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    write_json(path, record(joint=JOINT))
    assert read_json(path) == record(joint=JOINT)
    assert [item.name for item in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize(("content", "reason"), [("{", "not JSON"), ("[]", "no JSON object")])
def test_other_files_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        read_json(path)


def test_places_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_json(tmp_path / "file" / "record.json", {})
