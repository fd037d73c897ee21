"""Bootstrap intervals of ratios of sums, resampled over prompts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the borders of its 95% interval."""

    value: float
    low: float
    high: float


def ratio_of_sums(numerators: NDArray[np.float64], denominators: NDArray[np.float64], *, seed: int = 0) -> Estimate:
    """sum(numerators) / sum(denominators), resampled over entries.

    Args:
        numerators: One entry per prompt, `[prompts]`.
        denominators: `[prompts]`, of positive sum.
        seed: Seed of the resampling.
    """
    picks = _resamples(len(numerators), seed)
    spread = numerators[picks].sum(1) / denominators[picks].sum(1)
    return _estimate(float(numerators.sum() / denominators.sum()), spread)


def log_ratio_difference(
    numerators: tuple[NDArray[np.float64], NDArray[np.float64]],
    denominators: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    seed: int = 0,
) -> Estimate:
    """exp(difference of two ratios of sums) - 1, paired over prompts: the relative change of a perplexity.

    Args:
        numerators: Two arrays of `[prompts]`, the changed one first.
        denominators: The same for the denominators.
        seed: Seed of the resampling.
    """
    picks = _resamples(len(numerators[0]), seed)
    value = np.expm1(numerators[0].sum() / denominators[0].sum() - numerators[1].sum() / denominators[1].sum())
    spread = np.expm1(
        numerators[0][picks].sum(1) / denominators[0][picks].sum(1)
        - numerators[1][picks].sum(1) / denominators[1][picks].sum(1)
    )
    return _estimate(float(value), spread)


def median(values: NDArray[np.float64], *, seed: int = 0) -> Estimate:
    """The median of independent values, `[count]`."""
    return _estimate(float(np.median(values)), np.median(values[_resamples(len(values), seed)], axis=1))


def _resamples(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (NUM_RESAMPLES, count))


def _estimate(value: float, spread: NDArray[np.float64]) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(spread, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
