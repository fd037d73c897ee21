"""Writes the measured tables into the documents: `python benchmarks/update_documents.py [--check]`.

What stands between a table's markers comes from its record under `benchmarks/records` and nowhere else.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import result_tables
from draft_tables import DOCTORED, distill_lines, doctor_lines, new_draft_lines, training_lines
from energy_tables import energy_lines
from markdown_tables import markdown_table, record_link
from speed_tables import (
    guard_lines,
    iteration_lines,
    product_lines,
    speed_lines,
    stage_lines,
)

from mtad.results.comparison import MethodSummary, summarize
from mtad.results.files import read_json
from mtad.results.provenance import machine_name
from mtad.results.server_load import LoadSummary, summarize_load

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"


@dataclass(frozen=True)
class Table:
    """A table in a document: its place, its record, and how its lines are made."""

    name: str
    document: str
    record: str
    headings: tuple[str, ...]
    cells: Callable[[MethodSummary, dict[str, Any]], tuple[str, ...]]


def dial_cells(item: MethodSummary, _: dict[str, Any]) -> tuple[str, ...]:
    """Tokens per call and perplexity, the latter beside single-token sampling's."""
    label = item.label.replace(":", ", ").replace(",", ", ").replace(",  ", ", ")
    return label, f"{item.tokens_per_call.value:.2f}", f"{item.perplexity.value:.2f}", _change(item)


def rule_cells(item: MethodSummary, record: dict[str, Any]) -> tuple[str, ...]:
    """Everything that sets the rules apart."""
    exact = {True: "yes", False: "no", None: ""}[record["rows"][item.label]["is_lossless"]]
    calls = item.tokens_per_call
    return (
        f"`{item.label}`",
        exact,
        f"{calls.value:.2f} ({calls.low:.2f} to {calls.high:.2f})",
        " / ".join(f"{100 * share:.0f}" for share in item.acceptance_by_depth),
        f"{item.perplexity.value:.3f}",
        _change(item),
        "" if item.refused_share is None else f"{item.refused_share:.1%}",
        f"{item.tokens_per_answer:.0f}",
        f"{item.cut_share:.0%}",
        "" if item.speed_ratio is None else f"{item.speed_ratio.value:.2f}",
    )


RULE_HEADINGS = (
    "contender",
    "exact",
    "tokens per call (95% interval)",
    "kept to depth 1 / 2 / ..., %",
    "perplexity",
    "against sampling (95% interval)",
    "refused",
    "tokens",
    "cut",
    "speed",
)
TABLES = (
    Table(
        name="acceptance table",
        document="README.md",
        record="default_pair_acceptance.json",
        headings=("method", "tokens per call", "perplexity", "against sampling (95% interval)"),
        cells=dial_cells,
    ),
    Table("default pair", "docs/rules.md", "default_pair_rules.json", RULE_HEADINGS, rule_cells),
    Table("text-to-SQL pair", "docs/rules.md", "spider_pair_rules.json", RULE_HEADINGS, rule_cells),
)


SPEED = "docs/performance.md"
SPEED_RECORDS = {
    "speed": "bench_default_pair.json",
    "speed int8": "bench_default_pair_int8.json",
    "speed 8b": "bench_cuda_8b_1b.json",
    "speed 13b": "bench_cuda_13b_68m.json",
}
DRAFTS = "docs/drafts.md"
MACHINE_TABLES: tuple[tuple[str, str, Callable[[str, dict[str, Any]], str], str], ...] = (
    (SPEED, "iterations", iteration_lines, "cuda_iterations.json"),
    (SPEED, "products", product_lines, "cuda_products.json"),
    (SPEED, "guard", guard_lines, "draft_guard.json"),
    (SPEED, "stages int8", stage_lines, "profile_int8.json"),
    (DRAFTS, "new draft", new_draft_lines, "distill_nano_for_base.json"),
    (DRAFTS, "distill on CUDA", distill_lines, "distill_cuda.json"),
    (DRAFTS, "training", training_lines, "draft_training.json"),
)
"""Document, marker, what makes the lines, and their record."""
RESULTS = "docs/results.md"
SERVING = "docs/serving.md"
LOAD_RECORD = "server_load.json"
FAULTS_RECORD = "server_faults.json"
REPLAYS = "docs/traces.md"
REPLAY_RECORD = "replay_distance.json"


def _change(item: MethodSummary) -> str:
    change = item.perplexity_change
    return "" if change is None else f"{change.value:+.0%} ({change.low:+.0%} to {change.high:+.0%})"


def lines(table: Table, record: dict[str, Any]) -> str:
    """The table in Markdown, with what was measured, on what, and where the record lies."""
    rows = [table.headings, ("---",) * len(table.headings)]
    rows += [table.cells(item, record) for item in summarize(record)]
    return markdown_table(rows, _caption(table, record))


def _caption(table: Table, record: dict[str, Any]) -> str:
    workload, run = record["workload"], record["run"]
    settings = next(iter(record["rows"].values()))["settings"]
    depth = len(Path(table.document).parts) - 1
    link = "../" * depth + f"benchmarks/records/{table.record}"
    seeds = len(workload["seeds"])
    return (
        f"Gamma {settings['gamma']} and width {settings['beam_width']} unless told, temperature "
        f"{settings['temperature']:g}, top-k {settings['top_k']}, top-p {settings['top_p']:g}, "
        f"{workload['num_prompts']} prompts, {seeds} seed{'s' if seeds > 1 else ''}, at most "
        f"{settings['max_new_tokens']} new tokens, batches of {workload['batch_size']}; {record['models']['dtype']} on "
        f"{run['machine']['cores']} cores of an {machine_name(run)} processor. Perplexities are of the "
        f"emitted tokens under the target alone. Record: [{table.record}]({link})."
    )


def between(text: str, name: str, content: str) -> str:
    """A document with the content between the markers of a name."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, rest = text.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}\n{content}\n{end}{after}"


def replay_lines(record: dict[str, Any]) -> str:
    """Replays of a trace beside runs, in Markdown."""
    settings, machine = record["settings"], record["run"]["machine"]
    rows = ["| method | tau | replay of the run at 0.5 | run at this tau | apart | steps on policy | bytes a token |"]
    rows.append("|---|---|---|---|---|---|---|")
    for method, row in record["rows"].items():
        size = f"{row['trace_bytes'] / row['num_tokens']:.0f}"
        for tau, pair in sorted(row["thresholds"].items()):
            replayed, ran = pair["replay"]["tokens_per_call"], pair["run"]["tokens_per_call"]
            share = f"{pair['replay']['on_policy_share']:.0%}"
            cells = (method, tau, f"{replayed:.2f}", f"{ran:.2f}", f"{replayed / ran - 1:+.1%}", share, size)
            rows.append(f"| {' | '.join(cells)} |")
    caption = (
        f"Gamma {settings['gamma']}, width {settings['beam_width']}, `top` draws, temperature 1, top-k 10, top-p 0.9, "
        f"{settings['num_prompts']} prompts of MT-Bench, at most {settings['max_new_tokens']} new tokens; "
        f"{record['models']['dtype']} on an {machine['processor']} processor. "
        f"{record_link(REPLAY_RECORD)}"
    )
    return "\n".join(rows) + f"\n\n{caption}"


def load_lines(record: dict[str, Any]) -> str:
    """Load on a server, in Markdown."""
    rows = ["| load | lost | tokens/s | speed | first token, ms (p50 / p90 / p99) | between tokens, ms | rows a step |"]
    rows.append("|---|---|---|---|---|---|---|")
    rows += [f"| {' | '.join(_load_cells(item))} |" for item in summarize_load(record)]
    machine, load = record["run"]["machine"], record["samples"][0]["load"]
    counts = ", ".join(str(item["load"]["num_requests"]) for item in record["samples"])
    fields = ", ".join(f"{name} {value}" for name, value in record["fields"].items()) or "the server's own settings"
    caption = (
        f"{counts} chats of {load['new_tokens']} new tokens at temperature {load['temperature']:g}, {fields}; "
        f"model {record['model']} on {machine['cores']} cores of an {machine['processor']} processor, client "
        f"and server on the same cores, commit {record['run']['commit'][:7]}. "
        f"{record_link(LOAD_RECORD)}"
    )
    return "\n".join(rows) + f"\n\n{caption}"


def _load_cells(item: LoadSummary) -> tuple[str, ...]:
    return (
        item.label,
        f"{item.num_lost} of {item.num_requests}",
        f"{item.tokens_per_s:.1f}",
        "" if item.ratio is None else f"{item.ratio:.2f}x",
        _percentiles(item.first_token_ms),
        _percentiles(item.inter_token_ms),
        "" if item.rows_per_step is None else f"{item.rows_per_step:.1f}",
    )


def _percentiles(values: tuple[float, ...] | None) -> str:
    return "" if values is None else " / ".join(f"{value:.0f}" for value in values)


def fault_lines(record: dict[str, Any]) -> str:
    """Faults that a server stood, in Markdown."""
    rows = ["| fault | expected | got | server's memory, MB |", "|---|---|---|---|"]
    for item in record["rows"]:
        memory = f"{item['memory_before']:.0f} to {item['memory_after']:.0f}"
        rows.append(f"| {' | '.join((item['fault'], item['expected'], item['got'], memory))} |")
    caption = (
        f"Served: {record['target']}, commit {record['run']['commit'][:7]}. Made by `python "
        f"benchmarks/server_faults.py`. {record_link(FAULTS_RECORD)}"
    )
    return "\n".join(rows) + f"\n\n{caption}"


def documents() -> Iterator[tuple[Path, str]]:
    """Every document with its tables made anew."""
    texts = {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in (*(item.document for item in TABLES), REPLAYS, SPEED, RESULTS, SERVING, DRAFTS)
    }
    for table in TABLES:
        content = lines(table, read_json(RECORDS / table.record))
        texts[table.document] = between(texts[table.document], table.name, content)
    texts[REPLAYS] = between(texts[REPLAYS], "replay distance", replay_lines(read_json(RECORDS / REPLAY_RECORD)))
    for marker, name in SPEED_RECORDS.items():
        texts[SPEED] = between(texts[SPEED], marker, speed_lines(name, read_json(RECORDS / name)))
    for document, marker, make, record in MACHINE_TABLES:
        texts[document] = between(texts[document], marker, make(record, read_json(RECORDS / record)))
    examined = doctor_lines({name: read_json(RECORDS / name) for name in DOCTORED})
    texts[DRAFTS] = between(texts[DRAFTS], "doctor", examined)
    joules = energy_lines(result_tables.ENERGY, read_json(RECORDS / result_tables.ENERGY))
    texts[RESULTS] = between(texts[RESULTS], "energy", joules)
    for result in result_tables.TABLES:
        records = [read_json(RECORDS / name) for name in result.records]
        texts[RESULTS] = between(texts[RESULTS], result.name, result_tables.result_lines(result, records))
    claims = {name: read_json(RECORDS / name) for name in result_tables.CLAIM_RECORDS}
    texts[RESULTS] = between(texts[RESULTS], "paper", result_tables.paper_lines(claims))
    for name, make, record in (
        ("server load", load_lines, LOAD_RECORD),
        ("server faults", fault_lines, FAULTS_RECORD),
    ):
        texts[SERVING] = between(texts[SERVING], name, make(read_json(RECORDS / record)))
    for name, text in texts.items():
        yield ROOT / name, text


def main() -> int:
    """Run the command line; with `--check` the status is 1 when a document and its record differ."""
    is_stale = False
    for path, fresh in documents():
        text = path.read_text(encoding="utf-8")
        is_stale |= fresh != text
        if "--check" not in sys.argv[1:]:
            path.write_text(fresh, encoding="utf-8")
    return int(is_stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
