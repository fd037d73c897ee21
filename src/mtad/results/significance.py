"""Whether two contenders differ on the same items."""

from math import comb

import numpy as np
from numpy.typing import NDArray

from mtad.results.intervals import Estimate, ratio_of_sums

_NUM_FLIPS = 10_000


def mean(values: NDArray[np.float64]) -> Estimate:
    """The mean of independent values with its bootstrap interval, `[items]`."""
    return ratio_of_sums(values, np.ones_like(values))


def paired_test(own: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Two-sided p-value that two contenders score alike, paired over items.

    Scores of 0 and 1 are compared by McNemar's exact test, all others by flipping the signs of the differences.

    Args:
        own: Scores, `[items]`.
        other: The other contender's scores of the same items.
    """
    difference = own - other
    if np.isin(np.concatenate([own, other]), (0.0, 1.0)).all():
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return _sign_flips(difference[difference != 0])


def mcnemar(num_gained: int, num_lost: int) -> float:
    """Exact two-sided McNemar test: the binomial probability of a split at least as uneven.

    Args:
        num_gained: Items that the first gets right and the second does not.
        num_lost: Items that the second gets right and the first does not.
    """
    count, smaller = num_gained + num_lost, min(num_gained, num_lost)
    tail = sum(comb(count, place) for place in range(smaller + 1))
    return min(1.0, 2 * tail / (1 << count))


def _sign_flips(differences: NDArray[np.float64]) -> float:
    """Share of random signs that give a mean at least as far from 0; the observed one counts as one of them."""
    if not len(differences):
        return 1.0
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (_NUM_FLIPS, len(differences)))
    flipped = np.abs((signs * differences).sum(1))
    num_as_far = int((flipped >= abs(differences.sum()) - 1e-12).sum())
    return (1 + num_as_far) / (1 + _NUM_FLIPS)


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Chen et al., 2021: the unbiased estimate of the probability that one of k samples passes.

    Args:
        num_samples: Samples drawn, at least k.
        num_passed: Those that passed.
        k: Samples looked at.
    """
    return 1.0 - comb(num_samples - num_passed, k) / comb(num_samples, k)
