"""Rows become cells, and cells become Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from mtad.results.energy import joule_format

HEADINGS = (
    *("task", "contender", "items", "score", "change", "p", "perplexity", "perplexity change"),
    *("tokens/call", "tokens/answer", "cut", "tokens/s", "speed"),
)
OVERHEAD_HEADINGS = ("contender", "context", "batch", "draft ms", "verify ms", "other ms", "tokens/s", "cache MB")
ENERGY_HEADINGS = (
    *("workload", "contender", "J/token", "net J/token", "J/answer", "saving", "W", "draft J", "verify J"),
    *("draft ms", "verify ms", "tokens/s", "speed", "latency s", "busy", "tokens/call", "perplexity"),
)
SHARE_HEADINGS = (
    *("block of", "blocks", "share of the optimum", "geometric mean", "smallest", "optimal"),
    "smallest P/Q of a kept draft",
)
DIFF_HEADINGS = ("task", "contender", "score", "perplexity", "tokens/call", "speed against the baseline")


def task_cells(row: dict[str, Any]) -> list[str]:
    """One row of an evaluation or a comparison."""
    decoding = row["decoding"]
    seeds = f" x {row['num_seeds']}" if row["num_seeds"] > 1 else ""
    return [
        row["task"],
        row["contender"],
        f"{row['num_items']}{seeds}",
        interval(row["score"], ".3f"),
        interval(row["score_change"], "+.3f"),
        "" if row["p_value"] is None else f"{row['p_value']:.2g}",
        interval(decoding["perplexity"], ".3f"),
        interval(decoding["perplexity_change"], "+.1%"),
        interval(decoding["tokens_per_call"], ".2f"),
        f"{decoding['tokens_per_answer']:.0f}",
        f"{decoding['cut_share']:.0%}",
        f"{decoding['tokens_per_s']:.1f}",
        interval(decoding["speed_ratio"], ".2f"),
    ]


def overhead_cells(row: dict[str, Any]) -> list[str]:
    """One row of an overhead record."""
    times = [f"{row[name]:.1f}" for name in ("draft_ms", "verify_ms", "other_ms", "tokens_per_s")]
    return [row["contender"], str(row["context"]), str(row["batch_size"]), *times, f"{row['cache_bytes'] / 1e6:.1f}"]


def energy_cells(row: dict[str, Any], workload: str) -> list[str]:
    """One row of an energy record."""
    has_interval = row["num_windows"] > 1

    def value(estimate: dict[str, float] | None, spec: str | None = None) -> str:
        if estimate is None:
            return ""
        spec = spec or joule_format(estimate["value"])
        return interval(estimate, spec) if has_interval else f"{estimate['value']:{spec}}"

    return [
        workload,
        row["label"],
        value(row["joules_per_token"]) or "not measured",
        value(row["net_joules_per_token"]),
        _number(row["joules_per_answer"]),
        value(row["saving"], ".2f"),
        _number(row["watts"], ".1f"),
        *(_number(row[f"{phase}_joules"]) for phase in ("draft", "score")),
        *(_number(row[f"{phase}_ms"], ".2f") for phase in ("draft", "score")),
        value(row["tokens_per_s"], ".1f"),
        value(row["speed_ratio"], ".2f"),
        f"{row['latency_s']:.2f}",
        f"{row['busy_share']:.0%}",
        f"{row['tokens_per_call']:.2f}",
        f"{row['perplexity']:.3f}",
    ]


def share_cells(row: dict[str, Any]) -> list[str]:
    """One row of an approximation: how likely blocks are beside the optimal ones."""
    ratio = row["smallest_ratio"]
    return [
        row["contender"],
        str(row["num_blocks"]),
        interval(row["share"], ".3f"),
        f"{row['geometric_share']:.3f}",
        f"{row['smallest_share']:.2g}",
        f"{row['is_optimal']:.0%}",
        "" if ratio is None else f"{ratio:.3g}",
    ]


def diff_cells(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One row of two records: what was and what is."""
    return [
        before["task"],
        before["contender"],
        _pair(before["score"], after["score"]),
        *(_pair(before["decoding"][name], after["decoding"][name]) for name in ("perplexity", "tokens_per_call")),
        _pair(before["decoding"]["speed_ratio"], after["decoding"]["speed_ratio"]),
    ]


def interval(estimate: dict[str, float] | None, spec: str) -> str:
    """A value with the borders of its interval; empty for None."""
    if estimate is None:
        return ""
    return f"{estimate['value']:{spec}} [{estimate['low']:{spec}}, {estimate['high']:{spec}}]"


def to_markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in [headings, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]]) + "\n"


def to_csv(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *rows])
    return text.getvalue()


def _number(value: float | None, spec: str | None = None) -> str:
    return "" if value is None else f"{value:{spec or joule_format(value)}}"


def _pair(before: dict[str, float] | None, after: dict[str, float] | None) -> str:
    if before is None or after is None:
        return ""
    # Apart only where the intervals do not touch: the two runs are not paired.
    is_apart = before["low"] > after["high"] or after["low"] > before["high"]
    return f"{before['value']:.3f} → {after['value']:.3f}" + (" *" if is_apart else "")
