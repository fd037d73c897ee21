"""Tables of drafts: what training took and brought, ways to train compared, pairs examined."""

import statistics
from pathlib import Path
from typing import Any

from markdown_tables import markdown_table, record_link

from mtad.results.provenance import machine_name

COLUMNS = {"overlap": "overlap", "mmtad": "tokens per call, `mmtad`", "speculative": "tokens per call, `speculative`"}
"""Figures of a trained draft, and what the tables call them."""
DOCTORED = {
    "doctor_small.json": "the default pair",
    "doctor_small_int8.json": "the default pair",
    "doctor_nano_int8.json": "its draft `nano`",
    "doctor_base_int8.json": "its draft `base`",
    "doctor_itself_int8.json": "the target as its own draft",
    "doctor_other_int8.json": "a draft of another vocabulary",
}
"""Reports of `mtad doctor`, and of which pair."""


def distill_lines(name: str, record: dict[str, Any]) -> str:
    """What a run of `mtad distill` took and brought, in Markdown."""
    rows = [["stage", "tokens", "seconds", "tokens/s"], ["---"] * 4]
    for stage in ("sample", "train"):
        tokens, seconds = record[stage]["tokens"], record[stage]["seconds"]
        rows.append([stage, f"{tokens:,}", f"{seconds:.1f}", f"{tokens / seconds:,.0f}"])
    before, after = record["before"]["overlaps"][0], record["after"]["overlaps"][0]
    run = record["run"]
    caption = (
        f"Overlap on held-out text {before:.3f} before and {after:.3f} after; one {machine_name(run)}, commit "
        f"{run['commit'][:7]}: `{run['command']}` ({record['note']}). {record_link(name)}"
    )
    return markdown_table(rows, caption)


def new_draft_lines(name: str, record: dict[str, Any]) -> str:
    """A draft before and after a run of `mtad distill`, from its report, in Markdown."""
    ((size, draft),) = record["drafts"].items()
    rows = [[f"`{size}`", "before", "after"], ["---"] * 3]
    for figure in draft["after"]:
        label = "overlap" if figure == "overlap" else f"tokens per call, {_spelled(figure)}"
        rows.append([label, *(_rounded(figure, draft[stage][figure]) for stage in ("before", "after"))])
    rates, run, cores = record["rates"], record["run"], record["run"]["machine"]["cores"]
    caption = (
        f"{record['sample']['tokens']:,} tokens sampled at {rates['sampling_tokens_per_s']:,.0f} a second, "
        f"{record['train']['tokens']:,} trained on at {rates['training_tokens_per_s']:,.0f} a second, {cores} cores of "
        f"an {machine_name(run)}, commit {run['commit'][:7]}: `{run['command']}`. {record_link(name)}"
    )
    return markdown_table(rows, caption)


def training_lines(name: str, record: dict[str, Any]) -> str:
    """Ways to train a draft at equal cost, means of their seeds, in Markdown."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, row in record["rows"].items():
        found.setdefault(key.rsplit(", seed", 1)[0], []).append(row)
    rows = [["training", "batches", *COLUMNS.values()], ["---"] * (2 + len(COLUMNS))]
    for way, seeds in found.items():
        batches = " / ".join(str(row["batches"]) for row in seeds)
        rows.append([way, batches, *(_mean(seeds, figure) for figure in COLUMNS)])
    run, settings = record["run"], record["settings"]
    target = f"`{Path(settings['target']).name}` cut to {int(settings['vocab']):,} tokens"
    caption = (
        f"Means of {len(next(iter(found.values())))} seeds, each in parentheses; draft "
        f"`{settings['size']}` for {target}, "
        f"{float(settings['seconds']):g} s of processor time each for the same {int(settings['tokens']):,} sampled "
        f"tokens, {settings['answers']} answers of 64 tokens; {machine_name(run)}, commit {run['commit'][:7]}. "
        f"{record_link(name)}"
    )
    return markdown_table(rows, caption)


def doctor_lines(reports: dict[str, dict[str, Any]]) -> str:
    """What `mtad doctor` said of several pairs, in Markdown.

    Args:
        reports: Its reports, by file.
    """
    headings = ["pair", "weights", "draft call", "overlap", "tokens/call, `mmtad`", "fastest method", "verdict"]
    rows = [headings, ["---"] * len(headings)]
    for name, report in reports.items():
        models, verdict = report["models"], report["verdict"]
        weights = "8-bit" if models["quantization"] == "int8" else models["dtype"]
        rows.append([DOCTORED[name], weights, *_examined(report), f"{verdict['verdict']}: {verdict['reason']}"])
    run = next(iter(reports.values()))["run"]
    commits = ", ".join(sorted({report["run"]["commit"][:7] for report in reports.values()}))
    links = ", ".join(f"[{name}](../benchmarks/records/{name})" for name in reports)
    caption = (
        f"{run['machine']['cores']} cores of an {machine_name(run)}, which has no native bfloat16, commit {commits}; "
        f"speeds are those against the target alone, the median (range) of answers in turns. Records: {links}."
    )
    return markdown_table(rows, caption)


def _examined(record: dict[str, Any]) -> list[str]:
    if "costs" not in record:
        return [""] * 4
    figures = {item["method"]: item for item in record["methods"]}
    drafted = [item for name, item in figures.items() if name != "autoregressive"]
    best = max(drafted, key=lambda item: item["speedup"]["median"])
    speed = best["speedup"]
    return [
        f"{record['costs']['draft']:.2f}",
        f"{record['overlap']['value']:.3f}",
        f"{figures['mmtad']['tokens_per_call']:.2f}",
        f"`{best['method']}`, {speed['median']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})",
    ]


def _mean(seeds: list[dict[str, Any]], figure: str) -> str:
    values = [row[figure] for row in seeds]
    each = ", ".join(_rounded(figure, value) for value in values)
    return f"{_rounded(figure, statistics.fmean(values))} ({each})"


def _rounded(figure: str, value: float) -> str:
    return f"{value:.3f}" if figure == "overlap" else f"{value:.2f}"


def _spelled(label: str) -> str:
    method, *settings = label.split(", ")
    return ", ".join([f"`{method}`", *settings])
