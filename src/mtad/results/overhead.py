"""Medians of an overhead record."""

from collections.abc import Sequence
from statistics import median
from typing import Any

FIGURES = ("draft_ms", "verify_ms", "other_ms", "prefill_ms", "tokens_per_s", "cache_bytes")


def summarize_overhead(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each contender, context and batch size: the median of every figure over repeats."""
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for sample in samples:
        found.setdefault((sample["contender"], sample["context"], sample["batch_size"]), []).append(sample)
    return [
        {"contender": label, "context": context, "batch_size": batch_size}
        | {name: median(sample[name] for sample in group) for name in FIGURES}
        for (label, context, batch_size), group in found.items()
    ]
