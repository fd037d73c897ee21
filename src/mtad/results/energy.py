"""Joules, speed and likelihood of an energy record, contender by contender."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtad.results.intervals import Estimate, median

SCHEMA = 1
BASELINE = "speculative"
DRAFT, SCORE = "draft", "score"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySummary:
    """One contender on one workload; joules are those of all scopes of the meter together, None where not measured.

    Attributes:
        workload: Number of the workload in the record.
        label: The contender.
        num_windows: Measured windows.
        reason: Why there are no joules; None where there are.
        joules_per_token: Of everything in the window, prompts and waiting included, by emitted tokens; the median.
        net_joules_per_token: Without what the machine takes at rest; the median.
        joules_per_answer: The same as `joules_per_token` by answers.
        joules_by_scope: Joules per token by scope, all windows together.
        saving: The baseline's joules per token by these, on the same schedule, the median; 1.5 is 1.5 times less.
        watts: Mean power in the window.
        draft_joules: Of drafting alone, an iteration.
        score_joules: Of the target's call alone, an iteration.
        draft_ms: Milliseconds of the same.
        score_ms: Milliseconds of the same.
        tokens_per_s: Emitted tokens by seconds of work, prompts included and waiting left out; the median.
        speed_ratio: The same by the baseline's; the median.
        latency_s: From a request's time to its whole answer, the median over requests.
        busy_share: Share of the window that was not spent waiting for requests.
        tokens_per_call: Emitted tokens by calls of the target.
        perplexity: Of all answers under the unwarped temperature-1 target.
    """

    workload: int
    label: str
    num_windows: int
    reason: str | None
    joules_per_token: Estimate | None
    net_joules_per_token: Estimate | None
    joules_per_answer: float | None
    joules_by_scope: dict[str, float]
    saving: Estimate | None
    watts: float | None
    draft_joules: float | None
    score_joules: float | None
    draft_ms: float | None
    score_ms: float | None
    tokens_per_s: Estimate
    speed_ratio: Estimate | None
    latency_s: float
    busy_share: float
    tokens_per_call: float
    perplexity: float


def choose_baseline(labels: Sequence[str]) -> str:
    """Speculative sampling where it takes part, else the first contender."""
    return next((label for label in labels if label.partition(":")[0] == BASELINE), labels[0])


def summarize_energy(record: dict[str, Any]) -> list[EnergySummary]:
    """The lines of a record, workloads in order, contenders as they were named; those without a window are left out."""
    setup, scopes = record["setup"], record["meter"]["scopes"]
    found: dict[tuple[int, str], dict[int, Any]] = {}
    for item in record["samples"]:
        found.setdefault((item["workload"], item["contender"]), {})[item["repeat"]] = item
    return [
        _summary(number, label, found[number, label], found.get((number, setup["baseline"]), {}), record, scopes)
        for number in range(len(setup["workloads"]))
        for label in setup["contenders"]
        if (number, label) in found
    ]


def energy_to_json(summaries: Sequence[EnergySummary]) -> list[dict[str, Any]]:
    """The summaries as plain dictionaries."""
    return [asdict(item) for item in summaries]


def joule_format(value: float) -> str:
    """How joules of this size are written: about four digits."""
    places = next((places for border, places in ((1, 4), (10, 3), (100, 2)) if abs(value) < border), 1)
    return f".{places}f"


def gross_joules(reading: dict[str, Any], scopes: Sequence[str]) -> float | None:
    """Joules of a reading, all scopes together; None unless every one of them was measured."""
    joules = reading["joules"]
    if not scopes or any(scope not in joules for scope in scopes):
        return None
    return float(sum(joules[scope] for scope in scopes))


def net_joules(reading: dict[str, Any], scopes: Sequence[str]) -> float | None:
    """The same without idle power; None where that is not known for every scope."""
    gross, idle = gross_joules(reading, scopes), reading["idle_watts"]
    if gross is None or any(scope not in idle for scope in scopes):
        return None
    return gross - float(reading["seconds"] * sum(idle[scope] for scope in scopes))


def _summary(
    workload: int,
    label: str,
    samples: dict[int, Any],
    others: dict[int, Any],
    record: dict[str, Any],
    scopes: Sequence[str],
) -> EnergySummary:
    items = list(samples.values())
    shared = [repeat for repeat in samples if repeat in others]
    gross = _each(items, lambda item: _by_token(item, gross_joules(item["reading"], scopes)))
    pairs = [(_by_token(one, gross_joules(one["reading"], scopes)) for one in (others[repeat], samples[repeat]))
             for repeat in shared]  # fmt: skip
    savings = _each([tuple(pair) for pair in pairs], lambda pair: None if None in pair else pair[0] / pair[1])
    num_tokens = sum(item["num_tokens"] for item in items)
    return EnergySummary(
        workload=workload,
        label=label,
        num_windows=len(items),
        reason=None if gross else _reason(items, record),
        joules_per_token=_median(gross),
        net_joules_per_token=_median(
            _each(items, lambda item: _by_token(item, net_joules(item["reading"], scopes)))
        ),
        joules_per_answer=_sum_ratio(items, scopes, lambda item: item["num_answers"]),
        joules_by_scope=_by_scope(items, num_tokens, scopes) if gross else {},
        saving=_median(savings) if shared else None,
        watts=_sum_ratio(items, scopes, lambda item: item["reading"]["seconds"]),
        tokens_per_s=median(np.array([item["num_tokens"] / item["busy_s"] for item in items])),
        speed_ratio=_median([_speed(samples[repeat]) / _speed(others[repeat]) for repeat in shared]),
        latency_s=float(np.median([value for item in items for value in item["latencies_s"]])),
        busy_share=sum(item["busy_s"] for item in items) / sum(item["seconds"] for item in items),
        tokens_per_call=num_tokens / sum(item["target_calls"] for item in items),
        perplexity=math.exp(-sum(item["log_prob_sum"] for item in items) / num_tokens),
        **_phases(label, record, workload),
    )  # fmt: skip


def _phases(label: str, record: dict[str, Any], workload: int) -> dict[str, float | None]:
    """Joules and milliseconds an iteration of each phase, on this workload's batch and prompts."""
    scopes, place = record["meter"]["scopes"], record["setup"]["workloads"][workload]
    found: dict[str, float | None] = dict.fromkeys(
        f"{phase}_{unit}" for phase in (DRAFT, SCORE) for unit in ("joules", "ms")
    )
    for item in record["phases"]:
        keys = ("batch_size", "prompt_tokens")
        if item["contender"] == label and all(item[key] == place[key] for key in keys):
            joules = gross_joules(item["reading"], scopes)
            found[f"{item['phase']}_joules"] = None if joules is None else joules / item["num_calls"]
            found[f"{item['phase']}_ms"] = 1000 * item["reading"]["seconds"] / item["num_calls"]
    return found


def _each(items: Sequence[Any], figure: Callable[[Any], float | None]) -> list[float]:
    """The figure of every item; empty unless all have one, so that no mean is of some windows alone."""
    values = [figure(item) for item in items]
    return [value for value in values if value is not None] if None not in values else []


def _median(values: Sequence[float]) -> Estimate | None:
    return median(np.array(values)) if values else None


def _by_token(item: dict[str, Any], joules: float | None) -> float | None:
    return None if joules is None else joules / float(item["num_tokens"])


def _by_scope(items: Sequence[dict[str, Any]], num_tokens: int, scopes: Sequence[str]) -> dict[str, float]:
    return {scope: sum(item["reading"]["joules"][scope] for item in items) / num_tokens for scope in scopes}


def _sum_ratio(
    items: Sequence[dict[str, Any]], scopes: Sequence[str], divisor: Callable[[dict[str, Any]], float]
) -> float | None:
    """Joules of all windows by what they are shared out among."""
    joules = _each(items, lambda item: gross_joules(item["reading"], scopes))
    return sum(joules) / sum(divisor(item) for item in items) if joules else None


def _speed(item: dict[str, Any]) -> float:
    return float(item["num_tokens"] / item["busy_s"])


def _reason(items: Sequence[dict[str, Any]], record: dict[str, Any]) -> str:
    """Why nothing was measured: what the meter lacked from the beginning, or what failed in a window."""
    if not record["meter"]["scopes"]:
        return str(record["meter"]["reason"])
    failed = [text for item in items for scope, text in item["reading"]["not_measured"].items()
              if scope in record["meter"]["scopes"]]  # fmt: skip
    return failed[0] if failed else "some windows have no joules"
