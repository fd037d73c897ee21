"""Writes the measured table into README.md: `python benchmarks/update_readme.py [--check]`.

The table between the markers comes from `benchmarks/records/default_pair_acceptance.json` and nowhere else.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "records" / "default_pair_acceptance.json"
START, END = "<!-- acceptance table: start -->", "<!-- acceptance table: end -->"


def table(record: dict[str, Any]) -> str:
    """The rows of the record as Markdown, with the perplexity beside single-token sampling's."""
    sampling = record["rows"]["autoregressive sampling"]["perplexity"]
    lines = [
        "| method | tokens per call | perplexity | against sampling |",
        "|---|---|---|---|",
    ]
    for label, row in record["rows"].items():
        change = row["perplexity"] / sampling - 1
        lines.append(f"| {label} | {row['tokens_per_call']:.2f} | {row['perplexity']:.2f} | {change:+.0%} |")
    return "\n".join(lines)


def caption(record: dict[str, Any]) -> str:
    """What was measured, on what, and with which command."""
    machine = record["machine"]
    seeds = {row["num_answers"] // record["num_prompts"] for row in record["rows"].values()}
    counts = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else f"{seeds.pop()} seed(s)"
    tokens = next(iter(record["rows"].values()))["settings"]["max_new_tokens"]
    return (
        f"Default pair, temperature 1, top-k 10, top-p 0.9, {record['num_prompts']} prompts of "
        f"MT-Bench and Spec-Bench, at most {tokens} new tokens, {counts}; "
        f"{record['models']['dtype']} on an {machine['processor']} processor. "
        "Perplexities are of the emitted tokens under the target alone. "
        "Record: [benchmarks/records/default_pair_acceptance.json](benchmarks/records/default_pair_acceptance.json)."
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
    fresh = updated(readme, json.loads(RECORD.read_text(encoding="utf-8")))
    if "--check" in sys.argv[1:]:
        return int(fresh != readme)
    path.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
