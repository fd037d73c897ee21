"""Records become a folder: the page, the tables and the figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtad.errors import ConfigError, DataError
from mtad.report.figures import (
    Drawing,
    draw_acceptance,
    draw_energy,
    draw_pareto,
    draw_phases,
    draw_quality,
    draw_scores,
)
from mtad.report.loading import Record
from mtad.report.page import (
    describe_meter,
    not_measured,
    render_examples,
    render_figure,
    render_page,
    render_provenance,
    render_table,
)
from mtad.report.tables import (
    DIFF_HEADINGS,
    ENERGY_HEADINGS,
    HEADINGS,
    OVERHEAD_HEADINGS,
    SHARE_HEADINGS,
    diff_cells,
    energy_cells,
    overhead_cells,
    share_cells,
    task_cells,
    to_csv,
    to_markdown,
)

Files = dict[str, str | bytes]
"""Texts and pictures by path inside the report's folder."""


def build_report(records: Sequence[Record]) -> Files:
    """The page, `report.md`, `report.csv`, and the figures by themselves.

    Args:
        records: At least one; each gets a section.
    """
    files: Files = {}
    parts, markdown, cells = [], [], []
    for number, record in enumerate(records, start=1):
        parts.append(f"<h2>{record.name}</h2>{render_provenance(record)}")
        headings, rows = _table(record)
        if record.kind == "energy":
            parts.append(describe_meter(record))
        parts.append(render_table(headings, rows))
        if "shares" in record.document:
            shares = [share_cells(row) for row in record.document["shares"]]
            parts += ["<h3>Shares of the optimum</h3>", render_table(SHARE_HEADINGS, shares)]
        if record.kind == "energy":
            parts += _workloads(record, f"figures/{number}-", files)
        elif record.kind != "overhead":
            parts += _tasks(record, f"figures/{number}-", files)
        gaps = not_measured(record)
        parts.append("<h3>Not measured</h3><ul>" + "".join(f"<li>{gap}</li>" for gap in gaps) + "</ul>")
        markdown.append(f"## {record.name}\n\n{to_markdown(headings, rows)}\n`{record.document['run']['command']}`\n")
        cells.append(to_csv(headings, rows))
    files["report.md"] = "\n".join(markdown)
    files["report.csv"] = "\n".join(cells)
    files["report.html"] = render_page("What was measured", parts)
    return files


def build_difference(before: Record, after: Record) -> Files:
    """Two records side by side, row by row; an asterisk marks intervals that do not touch.

    Raises:
        ConfigError: They have no row in common, or no tasks at all.
    """
    for record in (before, after):
        if record.kind in ("overhead", "energy"):
            raise ConfigError(f"--diff compares evaluations or comparisons, got an {record.kind} record; leave it out")
    later = {(row["task"], row["contender"]): row for row in after.rows}
    rows = [
        diff_cells(row, later[row["task"], row["contender"]])
        for row in before.rows
        if (row["task"], row["contender"]) in later
    ]
    if not rows:
        raise ConfigError(f"{before.name} and {after.name} share no task and contender; name two runs of one kind")
    note = "<p class='soft'>From the first to the second; * marks intervals that do not touch.</p>"
    parts = [f"<h2>{record.name}</h2>{render_provenance(record)}" for record in (before, after)]
    return {
        "report.html": render_page("What has changed", [*parts, note, render_table(DIFF_HEADINGS, rows)]),
        "report.md": to_markdown(DIFF_HEADINGS, rows),
        "report.csv": to_csv(DIFF_HEADINGS, rows),
    }


def write_files(folder: Path, files: Files) -> None:
    """Write a report.

    Raises:
        DataError: The folder cannot be written to.
    """
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}; name another folder with --out") from error


def _table(record: Record) -> tuple[Sequence[str], list[list[str]]]:
    if record.kind == "overhead":
        return OVERHEAD_HEADINGS, [overhead_cells(row) for row in record.rows]
    if record.kind == "energy":
        labels = [workload["label"] for workload in record.document["setup"]["workloads"]]
        return ENERGY_HEADINGS, [energy_cells(row, labels[row["workload"]]) for row in record.rows]
    return HEADINGS, [task_cells(row) for row in record.rows]


def _workloads(record: Record, prefix: str, files: Files) -> list[str]:
    """The figures of every workload of an energy record; the figures go into `files` as well."""
    parts, shapes = [], set()
    for number, workload in enumerate(record.document["setup"]["workloads"]):
        rows = [row for row in record.rows if row["workload"] == number]
        if not rows:
            continue
        parts.append(f"<h3>{workload['label']}</h3>")
        drawings = {"energy": (draw_energy(rows), "energy, speed and perplexity, with 95% intervals over windows")}
        shape = workload["batch_size"], workload["prompt_tokens"]
        if shape not in shapes and all(row["score_ms"] is not None for row in rows):
            shapes.add(shape)
            drawings["phases"] = draw_phases(rows), "drafting and verifying of an iteration, each measured alone"
        for name, (drawing, caption) in drawings.items():
            _keep(drawing, f"{prefix}workload-{number + 1}-{name}", files)
            parts.append(render_figure(drawing.svg, f"{workload['label']}: {caption}"))
    return parts


def _keep(drawing: Drawing, name: str, files: Files) -> None:
    files |= {f"{name}.svg": drawing.svg, f"{name}.png": drawing.png}


def _tasks(record: Record, prefix: str, files: Files) -> list[str]:
    """The figures and examples of every task; the figures go into `files` as well."""
    parts = []
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in record.rows:
        by_task.setdefault(row["task"], []).append(row)
    for task, rows in by_task.items():
        parts.append(f"<h3>{task}</h3>")
        drawings = {"pareto": (draw_pareto(rows), f"{task}: speed and perplexity, with 95% intervals")}
        if all(row["score"] is not None for row in rows):
            drawings["quality"] = draw_quality(rows), f"{task}: speed and score, with 95% intervals"
            drawings["scores"] = draw_scores(rows), f"{task}: scores with 95% intervals"
        if any(row["decoding"]["acceptance_by_depth"] for row in rows):
            drawings["acceptance"] = draw_acceptance(rows), f"{task}: acceptance by depth"
        for name, (drawing, caption) in drawings.items():
            _keep(drawing, f"{prefix}{task}-{name}", files)
            parts.append(render_figure(drawing.svg, caption))
        parts.append(render_examples(record, task))
    return parts
