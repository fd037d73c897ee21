"""Intervals bracket the truth about as often as they say, and pairing removes what prompts share."""

import numpy as np
import pytest

from mtad.results.intervals import LEVEL, log_ratio_difference, median, ratio_of_sums


def test_the_value_is_the_ratio_of_the_sums() -> None:
    estimate = ratio_of_sums(np.array([1.0, 9.0]), np.array([1.0, 3.0]))
    assert estimate.value == 2.5
    assert estimate.low <= 2.5 <= estimate.high


def test_equal_prompts_leave_no_doubt() -> None:
    estimate = ratio_of_sums(np.full(5, 6.0), np.full(5, 3.0))
    assert (estimate.low, estimate.value, estimate.high) == (2.0, 2.0, 2.0)


def test_coverage_is_near_the_level() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        weights = generator.uniform(1, 2, 60)
        estimate = ratio_of_sums(weights * generator.normal(3, 1, 60), weights, seed=seed)
        hits += estimate.low <= 3 <= estimate.high
    # 200 draws of about 0.94: five standard deviations are 0.084.
    assert hits / 200 == pytest.approx(LEVEL, abs=0.09)


def test_a_paired_change_is_sharper_than_its_parts() -> None:
    generator = np.random.default_rng(2)
    base = generator.uniform(50, 150, 40)
    tokens = np.full(40, 100.0)
    change = log_ratio_difference((base - 10, base), (tokens, tokens))
    assert change.value == pytest.approx(np.expm1(-0.1))
    assert change.high - change.low < 1e-9


def test_the_median_ignores_one_wild_value() -> None:
    estimate = median(np.array([1.0, 1.1, 0.9, 1.0, 100.0]))
    assert estimate.value == 1.0
    assert estimate.low >= 0.9
