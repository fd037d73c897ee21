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


def test_the_other_two() -> None:
    assert not judge(parse_budget("lossless"), [], [], is_lossless=False).holds
    assert judge(parse_budget("max speed"), [], [], is_lossless=False).is_confirmed
    with pytest.raises(ConfigError, match="budget must be"):
        parse_budget("score within a lot")
