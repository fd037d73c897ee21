"""Throughput and percentiles of a record of load on a server."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SCHEMA = 1
QUANTILES = (0.5, 0.9, 0.99)
TOO_MANY = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """One load; percentiles are those of `QUANTILES`, None where nothing came.

    Attributes:
        label: The load in words.
        num_requests: Requests that were sent.
        num_lost: Those without a whole answer, refusals for too much load left out.
        num_refused: Those with status 429.
        tokens_per_s: Tokens of whole answers by seconds from the first request to the last answer.
        ratio: Against one stream at a time with the same prompts and answers; None without one.
        first_token_ms: From the request.
        inter_token_ms: Between tokens; those of one piece share the gap before it.
        tokens_per_call: Tokens by iterations.
        rows_per_step: Answers that the server served in a step; None where it does not say.
        reused_share: Prompt tokens whose keys were cached.
    """

    label: str
    num_requests: int
    num_lost: int
    num_refused: int
    tokens_per_s: float
    ratio: float | None
    first_token_ms: tuple[float, ...] | None
    inter_token_ms: tuple[float, ...] | None
    tokens_per_call: float | None
    rows_per_step: float | None
    reused_share: float | None


def summarize_load(record: dict[str, Any]) -> list[LoadSummary]:
    """The lines of a record of kind `server_load`, in its order."""
    alone = {_kind(item): _speed(item) for item in record["samples"] if item["load"]["streams"] == 1}
    return [_summary(item, alone.get(_kind(item))) for item in record["samples"]]


def load_to_json(summaries: list[LoadSummary]) -> list[dict[str, Any]]:
    """The summaries as plain dictionaries."""
    return [asdict(item) for item in summaries]


def _summary(sample: dict[str, Any], alone: float | None) -> LoadSummary:
    replies = sample["replies"]
    whole = [item for item in replies if item["error"] is None]
    refused = sum(item["status"] == TOO_MANY for item in replies)
    gaps = [seconds / count for item in whole for seconds, count in item["gaps"] for _ in range(count)]
    steps = sample["server"].get("mtad_steps_total")
    speed = _speed(sample)
    return LoadSummary(
        label=sample["load"]["label"],
        num_requests=len(replies),
        num_lost=len(replies) - len(whole) - refused,
        num_refused=refused,
        tokens_per_s=speed,
        ratio=speed / alone if alone else None,
        first_token_ms=_quantiles([item["first_s"] for item in whole if item["first_s"] is not None]),
        inter_token_ms=_quantiles(gaps),
        tokens_per_call=_share(whole, "num_tokens", "target_calls"),
        rows_per_step=sample["server"]["mtad_step_rows_total"] / steps if steps else None,
        reused_share=_share(whole, "num_reused", "num_prompt_tokens"),
    )


def _kind(sample: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sample["load"][name] for name in ("prompt_tokens", "new_tokens", "temperature"))


def _speed(sample: dict[str, Any]) -> float:
    tokens = sum(item["num_tokens"] for item in sample["replies"] if item["error"] is None)
    return float(tokens / sample["wall_s"])


def _quantiles(seconds: list[float]) -> tuple[float, ...] | None:
    if not seconds:
        return None
    return tuple(1000 * float(value) for value in np.quantile(seconds, QUANTILES))


def _share(replies: list[dict[str, Any]], part: str, whole: str) -> float | None:
    total = sum(item[whole] for item in replies)
    return sum(item[part] for item in replies) / total if total else None
