"""How much of the optimal block's joint likelihood other methods reach."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtad.results.intervals import Estimate
from mtad.results.significance import mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOfOptimum:
    """One contender's blocks against the optimal blocks after the same prompts.

    Attributes:
        contender: Its label.
        num_blocks: Prompts that both have answered.
        share: Mean of P(block) / P(optimal block), with its interval over prompts.
        geometric_share: The same as a geometric mean.
        smallest_share: Of any prompt.
        is_optimal: Share of prompts whose block is as likely as the optimum, to rounding.
        smallest_ratio: Smallest joint ratio P / Q of any kept draft, which the joint rule promises to be above
            its threshold; None where no draft was kept.
    """

    contender: str
    num_blocks: int
    share: Estimate
    geometric_share: float
    smallest_share: float
    is_optimal: float
    smallest_ratio: float | None


def shares_of_optimum(entries: Sequence[dict[str, Any]], optimum: str) -> list[dict[str, Any]]:
    """Rows of an approximation experiment, ready for JSON.

    Args:
        entries: Answers of one block each.
        optimum: Label of the contender that searches exactly.
    """
    blocks: dict[str, dict[tuple[str, str], float]] = {}
    ratios: dict[str, list[float]] = {}
    for entry in entries:
        blocks.setdefault(entry["contender"], {})[entry["task"], entry["item"]] = entry["log_prob_sum"]
        if entry.get("smallest_log_ratio") is not None:
            ratios.setdefault(entry["contender"], []).append(entry["smallest_log_ratio"])
    best = blocks.get(optimum, {})
    rows = []
    for label, found in blocks.items():
        gaps = np.array([found[item] - best[item] for item in found if item in best], dtype=np.float64)
        if len(gaps):
            shares = np.exp(gaps)
            row = ShareOfOptimum(
                contender=label,
                num_blocks=len(gaps),
                share=mean(shares),
                geometric_share=math.exp(float(gaps.mean())),
                smallest_share=float(shares.min()),
                is_optimal=float((shares > 1 - 1e-3).mean()),
                smallest_ratio=math.exp(min(ratios[label])) if label in ratios else None,
            )
            rows.append(asdict(row))
    return rows
