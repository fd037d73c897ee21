"""The record of a comparison: one entry an answer, and the table made from them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtad.results.intervals import Estimate, log_ratio_difference, median, ratio_of_sums

SCHEMA = 1
BASELINE = "autoregressive"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFigures:
    """What is kept of one answer.

    Attributes:
        prompt: Index of the prompt in the set.
        num_tokens: Emitted tokens.
        target_calls: Decode calls of the target.
        log_prob_sum: Sum of the tokens' natural log-probabilities under the unwarped target.
        kept_lengths: Number of iterations that kept 0, 1, 2, ... drafted tokens.
        refused_sum: Kept drafted tokens that token-by-token rejection would have refused, in expectation; None for
            methods that keep several drafted paths.
        finish_reason: `stop`, `length` or `cancelled`.
    """

    prompt: int
    num_tokens: int
    target_calls: int
    log_prob_sum: float
    kept_lengths: tuple[int, ...]
    refused_sum: float | None
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One row of the table.

    Attributes:
        label: Name of the contender.
        tokens_per_call: With its interval over prompts.
        acceptance_by_depth: Share of iterations that kept at least 1, 2, ... drafted tokens.
        perplexity: Token-weighted, with its interval over prompts.
        perplexity_of_mean_document: exp(-mean over answers of the mean log-probability).
        perplexity_change: Relative to the baseline, paired over prompts; None without a baseline.
        refused_share: Share of kept drafted tokens that a lossless rule would have refused; None without a draft,
            and for methods that keep several drafted paths.
        tokens_per_answer: Mean length.
        cut_share: Share of answers cut at the limit.
        num_answers: Answers behind the row.
        decode_s: Wall seconds of decoding, prefill not counted.
        tokens_per_s: Emitted tokens by those seconds, the whole batch together.
        speed_ratio: Median over batches of tokens/s against the baseline's on the same batch; None without one.
    """

    label: str
    tokens_per_call: Estimate
    acceptance_by_depth: tuple[float, ...]
    perplexity: Estimate
    perplexity_of_mean_document: float
    perplexity_change: Estimate | None
    refused_share: float | None
    tokens_per_answer: float
    cut_share: float
    num_answers: int
    decode_s: float
    tokens_per_s: float
    speed_ratio: Estimate | None


def summarize(record: dict[str, Any]) -> list[MethodSummary]:
    """The table of a record, contenders in their order; those without an answer yet are left out."""
    rows = {label: row for label, row in record["rows"].items() if row["answers"]}
    baseline = rows.get(BASELINE)
    return [summarize_row(label, row, baseline) for label, row in rows.items()]


def summaries_to_json(summaries: Sequence[MethodSummary]) -> list[dict[str, Any]]:
    """Plain dictionaries of the rows."""
    return [asdict(item) for item in summaries]


def summarize_row(label: str, row: dict[str, Any], baseline: dict[str, Any] | None) -> MethodSummary:
    """The figures of one contender.

    Args:
        label: Its name.
        row: `answers`, and for every batch `batches`, `batch_tokens` and `decode_s`, as in a record.
        baseline: The row that changes and ratios are against; None where there is none.
    """
    answers = row["answers"]
    tokens, calls, log_probs = (_by_prompt(answers, key) for key in ("num_tokens", "target_calls", "log_prob_sum"))
    per_token = ratio_of_sums(-log_probs, tokens)
    documents = [answer["log_prob_sum"] / answer["num_tokens"] for answer in answers]
    kept = [list(answer["kept_lengths"]) for answer in answers]
    num_kept = sum(length * count for counts in kept for length, count in enumerate(counts))
    decode_s = sum(row["decode_s"])
    return MethodSummary(
        label=label,
        tokens_per_call=ratio_of_sums(tokens, calls),
        acceptance_by_depth=_acceptance(kept),
        perplexity=Estimate(*(math.exp(value) for value in (per_token.value, per_token.low, per_token.high))),
        perplexity_of_mean_document=math.exp(-sum(documents) / len(documents)),
        perplexity_change=_change(answers, baseline),
        refused_share=_refused_share(answers, num_kept),
        tokens_per_answer=float(tokens.sum()) / len(answers),
        cut_share=sum(answer["finish_reason"] == "length" for answer in answers) / len(answers),
        num_answers=len(answers),
        decode_s=decode_s,
        tokens_per_s=float(tokens.sum()) / decode_s if decode_s else math.nan,
        speed_ratio=_speed_ratio(row, baseline),
    )


def _refused_share(answers: list[dict[str, Any]], num_kept: int) -> float | None:
    refused = [answer["refused_sum"] for answer in answers]
    return sum(refused) / num_kept if num_kept and None not in refused else None


def _change(answers: list[dict[str, Any]], baseline: dict[str, Any] | None) -> Estimate | None:
    """Relative change of perplexity on the prompts that both have answered."""
    if baseline is None or baseline["answers"] is answers:
        return None
    shared = {answer["prompt"] for answer in answers} & {answer["prompt"] for answer in baseline["answers"]}
    if not shared:
        return None
    pair = [[answer for answer in side if answer["prompt"] in shared] for side in (answers, baseline["answers"])]
    losses = (-_by_prompt(pair[0], "log_prob_sum"), -_by_prompt(pair[1], "log_prob_sum"))
    tokens = (_by_prompt(pair[0], "num_tokens"), _by_prompt(pair[1], "num_tokens"))
    return log_ratio_difference(losses, tokens)


def _speed_ratio(row: dict[str, Any], baseline: dict[str, Any] | None) -> Estimate | None:
    """Tokens per second against the baseline, paired over the batches that both have decoded."""
    if baseline is None:
        return None
    own, other = (
        {tuple(batch): tokens / seconds for batch, tokens, seconds in zip(*columns, strict=True) if seconds}
        for columns in ((side["batches"], side["batch_tokens"], side["decode_s"]) for side in (row, baseline))
    )
    shared = [batch for batch in own if batch in other]
    return median(np.array([own[batch] / other[batch] for batch in shared])) if shared else None


def _by_prompt(answers: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """Sums of a figure over the answers to each prompt, in the order of the prompts' indices."""
    sums: dict[int, float] = {}
    for answer in answers:
        sums[answer["prompt"]] = sums.get(answer["prompt"], 0.0) + answer[key]
    return np.array([sums[prompt] for prompt in sorted(sums)], dtype=np.float64)


def _acceptance(kept: list[list[int]]) -> tuple[float, ...]:
    depth = max(len(counts) for counts in kept) - 1
    totals = [sum(counts[length] for counts in kept if length < len(counts)) for length in range(depth + 1)]
    num_steps = sum(totals)
    return tuple(sum(totals[length:]) / max(num_steps, 1) for length in range(1, depth + 1))
