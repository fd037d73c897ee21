"""Paired tests agree with tables and with what they are made from."""

import numpy as np
import pytest

from mtad.results.significance import mcnemar, mean, paired_test, pass_at_k


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, 1.0), (5, 0, 0.0625), (10, 2, 0.03857421875), (3, 3, 1.0), (1, 0, 1.0)],
)
def test_mcnemar_is_the_exact_binomial(gained: int, lost: int, expected: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(expected)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_scores_of_zero_and_one_take_mcnemar() -> None:
    own, other = np.array([1.0] * 5 + [0.0] * 5), np.array([0.0] * 10)
    assert paired_test(own, other) == pytest.approx(0.0625)


def test_other_scores_take_sign_flips() -> None:
    generator = np.random.default_rng(1)
    base = generator.random(40)
    assert paired_test(base + 0.2, base + generator.normal(0, 0.01, 40)) < 0.001
    assert paired_test(base + generator.normal(0, 0.1, 40), base) > 0.01
    assert paired_test(base, base) == 1.0


def test_the_mean_has_an_interval() -> None:
    estimate = mean(np.array([0.0, 1.0] * 50))
    assert estimate.value == 0.5
    assert 0.35 < estimate.low < 0.45
    assert 0.55 < estimate.high < 0.65


def test_pass_at_k_counts_subsets() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)
    assert pass_at_k(5, 4, 2) == 1.0
