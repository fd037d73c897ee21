"""Tables of energy records: what a token takes, and what drafting and scoring take of it."""

from typing import Any

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
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{_caption(name, record)}"


def saving(record: dict[str, Any], label: str) -> Estimate | None:
    """How many times less energy a contender takes than speculative sampling on the first workload."""
    return next(item.saving for item in summarize_energy(record) if item.label == label)


def _cells(item: EnergySummary) -> tuple[str, ...]:
    return (
        f"`{item.label}`",
        _joules(item.joules_per_token),
        _joules(item.net_joules_per_token),
        "" if item.saving is None else f"{item.saving.value:.2f}x ({item.saving.low:.2f} to {item.saving.high:.2f})",
        "" if item.draft_joules is None else f"{item.draft_joules:{joule_format(item.draft_joules)}}",
        "" if item.score_joules is None else f"{item.score_joules:{joule_format(item.score_joules)}}",
        "" if item.watts is None else f"{item.watts:.0f}",
        f"{item.tokens_per_s.value:.1f}",
        f"{item.tokens_per_call:.2f}",
        f"{item.perplexity:.2f}",
    )


def _joules(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    spec = joule_format(estimate.value)
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
        f"Record: [{name}](../benchmarks/records/{name})."
    )
