"""Medians and intervals of a speed record."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtad.results.intervals import Estimate, median

SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSummary:
    """One contender on one workload.

    Attributes:
        workload: Number of the workload in the record.
        label: The contender.
        num_samples: Measured batches.
        prefill_ms: Median over batches.
        tokens_per_s: Decoded tokens by decoding seconds of a batch, the median.
        ratio: Tokens per second against the baseline's on the same batch, the median; None without a baseline.
        tokens_per_call: Tokens by calls of the target; None where calls are not counted.
        perplexity: Of all answers under the unwarped temperature-1 target.
        floor_share: Time that reading weights, keys and values once a call takes at the measured bandwidth, by the
            decoding time, the median; None where the bytes are not known.
    """

    workload: int
    label: str
    num_samples: int
    prefill_ms: float
    tokens_per_s: Estimate
    ratio: Estimate | None
    tokens_per_call: float | None
    perplexity: float
    floor_share: float | None


def summarize_speed(record: dict[str, Any], baseline: str | None) -> list[SpeedSummary]:
    """The lines of a record, workloads in order, contenders as they were named.

    Args:
        record: Of kind `bench`.
        baseline: Contender that speeds are compared with; None compares with none.
    """
    setup = record["setup"]
    labels = [*setup["peers"], *setup["contenders"]]
    found: dict[tuple[int, str], dict[int, Any]] = {}
    for item in record["samples"]:
        found.setdefault((item["workload"], item["contender"]), {})[item["repeat"]] = item
    places = [(number, label) for number in range(len(setup["workloads"])) for label in labels]
    return [
        _summary(number, label, found[number, label], found.get((number, baseline or "")), record.get("bandwidth"))
        for number, label in places
        if (number, label) in found
    ]


def speed_to_json(summaries: list[SpeedSummary]) -> list[dict[str, Any]]:
    """The summaries as plain dictionaries."""
    return [asdict(item) for item in summaries]


def _summary(
    workload: int, label: str, samples: dict[int, Any], others: dict[int, Any] | None, bandwidth: float | None
) -> SpeedSummary:
    items = list(samples.values())
    shared = [repeat for repeat in samples if others is not None and repeat in others]
    ratios = [_speed(samples[repeat]) / _speed(others[repeat]) for repeat in shared] if others is not None else []
    num_tokens = sum(item["num_tokens"] for item in items)
    calls = [item["target_calls"] for item in items]
    return SpeedSummary(
        workload=workload,
        label=label,
        num_samples=len(items),
        prefill_ms=1000 * float(np.median([item["prefill_s"] for item in items])),
        tokens_per_s=median(np.array([_speed(item) for item in items])),
        ratio=median(np.array(ratios)) if ratios else None,
        tokens_per_call=None if None in calls else num_tokens / sum(calls),
        perplexity=float(np.exp(-sum(item["log_prob_sum"] for item in items) / num_tokens)),
        floor_share=_floor_share(items, bandwidth),
    )


def _floor_share(items: list[Any], bandwidth: float | None) -> float | None:
    if bandwidth is None or any(item.get("floor_bytes") is None for item in items):
        return None
    return float(np.median([item["floor_bytes"] / bandwidth / item["decode_s"] for item in items]))


def _speed(sample: dict[str, Any]) -> float:
    return float(sample["num_decoded"] / sample["decode_s"])
