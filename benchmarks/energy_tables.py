"""Tables of energy records: what a token takes, and what drafting and scoring take of it."""

from typing import Any

from markdown_tables import markdown_table, record_link

from mtad.results.energy import EnergySummary, joule_format, summarize_energy
from mtad.results.intervals import Estimate
from mtad.results.provenance import machine_name

HEADINGS = (
    "contender",
    "J/token (95% interval)",
    "above rest",
    "less than `speculative`",
    "draft, J",
    "score, J",
    "both, J/token",
    "W",
    "tokens/s",
    "tokens per call",
    "perplexity",
)


def energy_lines(name: str, record: dict[str, Any]) -> str:
    """Joules by contender and workload, in Markdown."""
    workloads = record["setup"]["workloads"]
    has_several = len(workloads) > 1
    rows = [(("workload",) if has_several else ()) + HEADINGS, ("---",) * (len(HEADINGS) + has_several)]
    for item in summarize_energy(record):
        place = (workloads[item.workload]["label"],) if has_several else ()
        rows.append(place + _cells(item))
    return markdown_table(rows, _caption(name, record))


def phase_joules(item: EnergySummary) -> float | None:
    """Joules per token of drafting and scoring alone: those of an iteration by the tokens that it emits."""
    if item.score_joules is None:
        return None
    return ((item.draft_joules or 0.0) + item.score_joules) / item.tokens_per_call


def phase_saving(record: dict[str, Any], label: str, baseline: str = "speculative") -> float | None:
    """How many times fewer of these a contender takes than another on the first workload."""
    found = {item.label: phase_joules(item) for item in summarize_energy(record) if item.workload == 0}
    own, other = found[label], found[baseline]
    return None if own is None or other is None else other / own


def _cells(item: EnergySummary) -> tuple[str, ...]:
    return (
        f"`{item.label}`",
        _joules(item.joules_per_token),
        _joules(item.net_joules_per_token),
        "" if item.saving is None else f"{item.saving.value:.2f}x",
        "" if item.draft_joules is None else f"{item.draft_joules:{joule_format(item.draft_joules)}}",
        "" if item.score_joules is None else f"{item.score_joules:{joule_format(item.score_joules)}}",
        _phase_cell(item),
        "" if item.watts is None else f"{item.watts:.0f}",
        f"{item.tokens_per_s.value:.1f}",
        f"{item.tokens_per_call:.2f}",
        f"{item.perplexity:.2f}",
    )


def _phase_cell(item: EnergySummary) -> str:
    joules = phase_joules(item)
    return "" if joules is None else f"{joules:{joule_format(joules)}}"


def _joules(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    spec = joule_format(estimate.value)
    if estimate.low == estimate.high:
        return f"{estimate.value:{spec}}"
    return f"{estimate.value:{spec}} ({estimate.low:{spec}} to {estimate.high:{spec}})"


def _caption(name: str, record: dict[str, Any]) -> str:
    run, models, meter = record["run"], record["models"], record["meter"]
    shapes = (models.get("target_shape"), models.get("draft_shape"))
    twins = f"**Cost twins** in the sizes of {shapes[0]} and {shapes[1]}, not those models. " if any(shapes) else ""
    windows = 1 + max(item["repeat"] for item in record["samples"])
    labels = "; ".join(item["label"] for item in record["setup"]["workloads"])
    return (
        f"{twins}{labels[0].upper()}{labels[1:]}; {windows} windows each, counter {meter['backend']} of "
        f"{' and '.join(meter['scopes'])}, draft and score an iteration, each alone in windows of its own; "
        f"{models['dtype']}, {machine_name(run)}, commit {run['commit'][:7]}: `{run['command']}`. "
        f"{record_link(name)}"
    )
