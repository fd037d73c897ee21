"""Writes the measured table into README.md: `python benchmarks/update_readme.py [--check]`.

The table between the markers comes from `benchmarks/records/default_pair_acceptance.json` and nowhere else.
"""

import sys
from pathlib import Path
from typing import Any

from mtad.results.comparison import MethodSummary, summarize
from mtad.results.files import read_json

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "records" / "default_pair_acceptance.json"
START, END = "<!-- acceptance table: start -->", "<!-- acceptance table: end -->"


def table(record: dict[str, Any]) -> str:
    """The rows of the record as Markdown, with the perplexity beside single-token sampling's."""
    lines = [
        "| method | tokens per call | perplexity | against sampling (95% interval) |",
        "|---|---|---|---|",
    ]
    for item in summarize(record):
        lines.append(
            f"| {item.label.replace(':', ', ').replace(',', ', ').replace(',  ', ', ')} | "
            f"{item.tokens_per_call.value:.2f} | {item.perplexity.value:.2f} | {_change(item)} |"
        )
    return "\n".join(lines)


def _change(item: MethodSummary) -> str:
    change = item.perplexity_change
    return "" if change is None else f"{change.value:+.0%} ({change.low:+.0%} to {change.high:+.0%})"


def caption(record: dict[str, Any]) -> str:
    """What was measured, on what, and where the record lies."""
    workload, settings = record["workload"], next(iter(record["rows"].values()))["settings"]
    seeds = len(workload["seeds"])
    return (
        f"Default pair, gamma {settings['gamma']} and width {settings['beam_width']} unless told, `top` draws, "
        f"temperature 1, top-k 10, top-p 0.9, {workload['num_prompts']} prompts of MT-Bench and Spec-Bench, "
        f"{seeds} seed{'s' if seeds > 1 else ''}, at most {settings['max_new_tokens']} new tokens; "
        f"{record['models']['dtype']} on an {record['run']['machine']['processor']} processor. "
        "Perplexities are of the emitted tokens under the target alone. "
        f"Record: [{RECORD.relative_to(ROOT)}]({RECORD.relative_to(ROOT)})."
    )


def updated(readme: str, record: dict[str, Any]) -> str:
    """The README with a fresh table between its markers."""
    before, rest = readme.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{table(record)}\n\n{caption(record)}\n{END}{after}"


def main() -> int:
    """Run the command line; with `--check` the status is 1 when README and record differ."""
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    fresh = updated(readme, read_json(RECORD))
    if "--check" in sys.argv[1:]:
        return int(fresh != readme)
    path.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
