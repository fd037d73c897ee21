"""One page of HTML that needs nothing else."""

import base64
import html
from collections.abc import Sequence
from typing import Any

from mtad.report.loading import Record
from mtad.results.provenance import machine_name

_NUM_EXAMPLES = 2
_EXAMPLE_CHARACTERS = 900
STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #57606a; --line: #d0d7de; --paper: #fff; --drafted: #0a7d33; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa4ae; --line: #30363d; --paper: #0d1117; --drafted: #56d364; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 72rem; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.6rem; text-align: right; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0.8rem; }
.answers > div, blockquote { border: 1px solid var(--line); border-radius: 6px; padding: 0.6rem; margin: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
.drafted { color: var(--drafted); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; } .answers > div, figure, tr { break-inside: avoid; } }
"""


def render_page(title: str, parts: Sequence[str]) -> str:
    """The whole document."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def render_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself on narrow screens."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def render_figure(svg: str, caption: str) -> str:
    """A figure inside the page."""
    data = base64.b64encode(svg.encode()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{text}">'
        f'<figcaption class="soft">{text}</figcaption></figure>'
    )


def render_provenance(record: Record) -> str:
    """How, on what and with which versions the run was made."""
    run = record.document["run"]
    facts = {
        "command": run["command"],
        "commit": f"{run['commit']}{' (with local changes)' if run['is_dirty'] else ''}",
        "machine": f"{machine_name(run)}, {run['machine']['cores']} cores, {run['machine']['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version),
        "models": ", ".join(f"{name} {value}" for name, value in record.document.get("models", {}).items() if value),
    }
    items = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items() if value)
    continued = record.document.get("continued", [])
    times = "once" if len(continued) == 1 else f"{len(continued)} times"
    note = f'<p class="soft">Gone on with {times}.</p>' if continued else ""
    return f"<dl>{items}</dl>{note}"


def render_examples(record: Record, task: str) -> str:
    """Answers of all contenders to the first items of a task, drafted tokens in colour."""
    entries = [entry for entry in record.entries if entry["task"] == task]
    if not entries:
        return ""
    first_seed = min(entry["seed"] for entry in entries)
    parts = []
    for item in list(dict.fromkeys(entry["item"] for entry in entries))[:_NUM_EXAMPLES]:
        shown = [entry for entry in entries if entry["item"] == item and entry["seed"] == first_seed]
        answers = "".join(
            f"<div><strong>{html.escape(entry['contender'])}</strong>{_score(entry)}\n{_coloured(entry)}</div>"
            for entry in shown
        )
        parts.append(f"<blockquote>{_clip(shown[0]['turns'][0])}</blockquote><div class='answers'>{answers}</div>")
    return "<h3>Answers side by side</h3><p class='soft'>Coloured text was drafted.</p>" + "".join(parts)


def not_measured(record: Record) -> list[str]:
    """What a reader may look for and will not find, with the reason."""
    if record.kind == "energy":
        return _energy_gaps(record)
    gaps = ["Energy: not measured; this run had no meter."]
    unscored = list(dict.fromkeys(row["task"] for row in record.rows if "score" in row and row["score"] is None))
    if unscored:
        gaps.append(f"Scores of {', '.join(unscored)}: these have no right answers; likelihood and speed stand alone.")
    if any("decoding" in row and row["decoding"]["speed_ratio"] is None for row in record.rows):
        gaps.append("Speed ratios of some rows: single-token sampling was not run on the same batches.")
    if any(row.get("num_seeds") == 1 for row in record.rows):
        gaps.append("Diversity of rows with one seed.")
    return gaps


def _energy_gaps(record: Record) -> list[str]:
    meter, gaps = record.document["meter"], []
    if not meter["scopes"]:
        gaps.append(f"Energy: not measured: {meter['reason']}.")
    else:
        names = {"gpu": "GPU", "cpu_package": "CPU package", "dram": "DRAM"}
        gaps += [f"Energy of {names[scope]}: not measured: {text}." for scope, text in meter["not_measured"].items()]
        gaps += dict.fromkeys(f"Energy of {row['label']}: {row['reason']}." for row in record.rows if row["reason"])
    gaps += [f"{label}: left out; {reason}." for label, reason in record.document["skipped"].items()]
    return [html.escape(gap) for gap in gaps]


def describe_meter(record: Record) -> str:
    """What the joules of an energy record are joules of, as a paragraph."""
    meter, idle = record.document["meter"], record.document["idle"]
    if not meter["scopes"]:
        return f"<p>Energy: not measured: {html.escape(meter['reason'])}.</p>"
    source = "replayed from a recording, not measured in this run" if meter["is_recording"] else "by hardware counters"
    text = f"Energy of {meter['scope']}, {source} ({meter['backend']})."
    if idle and idle[-1]["joules"]:
        watts = sum(idle[-1]["joules"].values()) / idle[-1]["seconds"]
        text += f" At rest, with the models loaded, the same takes {watts:.1f} W; net figures are without that."
    return f"<p>{html.escape(text)}</p>"


def _coloured(entry: dict[str, Any]) -> str:
    parts, room = [], _EXAMPLE_CHARACTERS
    for turn in entry["segments"]:
        for text, origin in turn:
            shown = html.escape(text[: max(room, 0)])
            room -= len(text)
            parts.append(f'<span class="drafted">{shown}</span>' if origin == "drafted" else shown)
        parts.append("\n")
    return "".join(parts).rstrip() + ("…" if room < 0 else "")


def _score(entry: dict[str, Any]) -> str:
    return "" if entry["value"] is None else f' <span class="soft">{entry["value"]:.2f}</span>'


def _clip(text: str) -> str:
    half = _EXAMPLE_CHARACTERS // 2
    return html.escape(text if len(text) <= 2 * half else f"{text[:half]} … {text[-half:]}")
