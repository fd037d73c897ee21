"""Budgets are read from words and judged by means and intervals."""

from typing import Any

import pytest

from mtad.errors import ConfigError
from mtad.evaluation.budgets import judge, parse_budget


def row(change: tuple[float, float, float], score: float | None = None, score_change: float = 0.0) -> dict[str, Any]:
    names = ("value", "low", "high")
    return {
        "task": "t",
        "score": None if score is None else {"value": score},
        "score_change": None if score is None else {"value": score_change, "low": score_change - 0.1},
        "decoding": {"perplexity_change": dict(zip(names, change, strict=True))},
    }


def test_perplexity_is_kept_by_the_mean_or_by_the_interval() -> None:
    budget = parse_budget("Perplexity <= sampling")
    for change, expected in (
        ((-0.2, -0.3, -0.1), (True, True)),
        ((-0.1, -0.3, 0.1), (True, False)),
        ((0.1, 0.0, 0.2), (False, False)),
    ):
        found = judge(budget, [row(change)], [], is_lossless=False)
        assert (found.holds, found.is_confirmed) == expected
    assert judge(budget, [row((0.1, 0, 0.2))], [], is_lossless=True).is_confirmed


def test_scores_may_fall_by_so_many_percent() -> None:
    budget = parse_budget("score within 10%")
    base = [row((0, 0, 0), 0.5)]
    assert judge(budget, [row((0, 0, 0), 0.46, -0.04)], base, is_lossless=False).holds
    assert not judge(budget, [row((0, 0, 0), 0.44, -0.06)], base, is_lossless=False).holds
    assert not judge(budget, [row((0, 0, 0), 0.46, -0.04)], base, is_lossless=False).is_confirmed


@pytest.mark.parametrize(
    ("text", "figure", "limit"),
    [
        ("Energy <= sampling", "ratio", 1.0),
        ("energy<=80% of sampling", "ratio", 0.8),
        ("joules <= 2.5", "per_token", 2.5),
    ],
)
def test_joules_are_kept_by_the_median_or_by_the_interval(text: str, figure: str, limit: float) -> None:
    budget = parse_budget(text)
    assert budget.needs_meter
    for times, expected in (((0.9, 1.0), (True, True)), ((1.0, 1.1), (True, False)), ((1.01, 1.2), (False, False))):
        spent = {figure: {"value": times[0] * limit, "high": times[1] * limit}}
        found = judge(budget, [row((0, 0, 0)) | {"joules": spent}], [], is_lossless=True)
        assert (found.holds, found.is_confirmed) == expected, "a rule that keeps the law may take any energy"


def test_the_other_two() -> None:
    assert not judge(parse_budget("lossless"), [], [], is_lossless=False).holds
    assert judge(parse_budget("max speed"), [], [], is_lossless=False).is_confirmed
    with pytest.raises(ConfigError, match="budget must be"):
        parse_budget("score within a lot")
