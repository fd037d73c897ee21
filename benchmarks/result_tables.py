"""Tables of `docs/results.md`, made from the committed records of evaluations and experiments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from energy_tables import phase_saving
from markdown_tables import markdown_table, record_link

from mtad.results.provenance import machine_name
from mtad.results.speed import summarize_speed

Record = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A heading and what stands under it; a column that is empty in all rows is left out."""

    heading: str
    cell: Callable[[Row], str]


@dataclass(frozen=True)
class ResultTable:
    """A table of the document.

    Attributes:
        name: Its marker.
        records: Files whose rows it shows, one after the other.
        columns: What it shows of each row.
        rows: Key of the rows in the record.
    """

    name: str
    records: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: str = "rows"


def interval(estimate: dict[str, float] | None, spec: str) -> str:
    """A value with its interval; empty for None."""
    if estimate is None:
        return ""
    low, high = (f"{estimate[side]:{spec}}" for side in ("low", "high"))
    return f"{estimate['value']:{spec}} ({low} to {high})"


def _label(row: Row) -> str:
    seeds = f" x {row['num_seeds']} seeds" if row.get("num_seeds", 1) > 1 else ""
    return f"`{row['contender']}`{seeds}"


def _p_value(row: Row) -> str:
    value = row["p_value"]
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.2g}"


def _diversity(row: Row) -> str:
    found = row["diversity"]
    return "" if found is None else f"{found['distinct_pairs']:.2f} / {found['similarity']:.2f}"


CONTENDER = Column("contender", _label)
TASK = Column("task", lambda row: row["task"])
DECODING = (
    Column("perplexity", lambda row: f"{row['decoding']['perplexity']['value']:.3f}"),
    Column("against sampling", lambda row: interval(row["decoding"]["perplexity_change"], "+.0%")),
    Column("tokens/call", lambda row: f"{row['decoding']['tokens_per_call']['value']:.2f}"),
    Column("tokens/answer", lambda row: f"{row['decoding']['tokens_per_answer']:.0f}"),
    Column("cut", lambda row: f"{row['decoding']['cut_share']:.0%}"),
    Column("diversity", _diversity),
)
BATCH_SPEED = Column("speed in batches", lambda row: interval(row["decoding"]["speed_ratio"], ".2f"))
SCORE = (
    Column("score", lambda row: interval(row["score"], ".3f")),
    Column("change", lambda row: interval(row["score_change"], "+.3f")),
    Column("p", _p_value),
    Column("without empty gold", lambda row: interval(row["score_without_empty"], ".3f")),
)
SHARES = (
    CONTENDER,
    Column("blocks", lambda row: str(row["num_blocks"])),
    Column("share of the optimum", lambda row: interval(row["share"], ".2f")),
    Column("geometric", lambda row: f"{row['geometric_share']:.2f}"),
    Column("smallest", lambda row: f"{row['smallest_share']:.2g}"),
    Column("optimal", lambda row: f"{row['is_optimal']:.0%}"),
    Column("smallest P/Q kept", lambda row: "" if row["smallest_ratio"] is None else f"{row['smallest_ratio']:.3g}"),
)
TABLES = (
    ResultTable("quality", ("results_quality.json",), (TASK, CONTENDER, *SCORE[:3], *DECODING[:-1])),
    ResultTable(
        "spider", ("results_spider.json", "results_spider_seeds.json"), (CONTENDER, *SCORE, *DECODING, BATCH_SPEED)
    ),
    ResultTable("dial", ("results_threshold.json",), (TASK, CONTENDER, *SCORE[:1], *DECODING)),
    ResultTable("dial sql", ("results_threshold_sql.json",), (CONTENDER, *SCORE[:2], *DECODING)),
    ResultTable("auxiliary size", ("results_auxiliary_size.json",), (CONTENDER, *DECODING)),
    ResultTable("approximation", ("results_approximation.json",), SHARES, rows="shares"),
)


SPEED, QUALITY, SPIDER = "bench_default_pair_int8.json", "results_quality.json", "results_spider.json"
ENERGY = "results_energy.json"
CLAIM_RECORDS = (SPEED, QUALITY, SPIDER, ENERGY)
CHAT = "mt_bench"
SOURCES = (
    "`mmtad` at tau 0.5 on the 80 conversations of MT-Bench, below",
    "the same beside `speculative`",
    "`mmtad` at tau 0.5, [performance.md](performance.md)",
    "`mmtad` at tau 0.5 on Spider, below",
    "`mmtad` at tau 0.5, draft and score alone, 8B/1B cost twins on a GPU, below",
)


def result_lines(table: ResultTable, records: Sequence[Record]) -> str:
    """The table in Markdown, with how it was measured."""
    rows = [row for record in records for row in record[table.rows]]
    columns = [column for column in table.columns if any(column.cell(row) for row in rows)]
    cells = [[column.heading for column in columns], ["---"] * len(columns)]
    cells += [[column.cell(row) for column in columns] for row in rows]
    captions = [_caption(record, name) for record, name in zip(records, table.records, strict=True)]
    return markdown_table(cells, "\n".join(captions))


def paper_lines(records: dict[str, Record]) -> str:
    """What the paper claims beside what the records hold; `records` by file name."""
    bench = {item.label: item for item in summarize_speed(records[SPEED], "speculative")}
    chat = {row["contender"]: row["decoding"] for row in records[QUALITY]["rows"] if row["task"] == CHAT}
    sql = {row["contender"]: row for row in records[SPIDER]["rows"]}
    perplexity = chat["mmtad"]["perplexity_change"]["value"]
    calls = chat["mmtad"]["tokens_per_call"]["value"] / chat["speculative"]["tokens_per_call"]["value"]
    speed, score = bench["mmtad"].ratio, sql["mmtad"]["score"]["value"] / sql["autoregressive"]["score"]["value"]
    saving = phase_saving(records[ENERGY], "mmtad")
    assert speed is not None
    assert saving is not None
    reached = (
        ("perplexity against single-token sampling", "-21.2%", f"{perplexity:+.1%}", perplexity / -0.212),
        ("tokens per call against lossless drafts", "1.20x", f"{calls:.2f}x", (calls - 1) / 0.20),
        ("speed against speculative decoding", "1.42x", f"{speed.value:.2f}x", (speed.value - 1) / 0.42),
        ("score against single-token sampling", "+43%", f"{score - 1:+.1%}", (score - 1) / 0.43),
        ("energy a token against speculative decoding", "1/1.54", f"1/{saving:.2f}", (saving - 1) / 0.54),
    )
    lines = ["| claim | paper | here | share of the claimed gain | measured by |", "|---|---|---|---|---|"]
    for (claim, theirs, ours, share), source in zip(reached, SOURCES, strict=True):
        lines.append(f"| {claim} | {theirs} | {ours} | {share:.0%} | {source} |")
    return "\n".join(lines)


def _caption(record: Record, name: str) -> str:
    run, models = record["run"], record["models"]
    settings = next(iter(record["contenders"].values()))["settings"]
    length = record["workload"]["max_new_tokens"]
    limit = "" if length is None else f"at most {length} new tokens, "
    weights = "8-bit weights, " if models.get("quantization") == "int8" else ""
    return (
        f"Gamma {settings['gamma']} and width {settings['beam_width']} unless told, temperature "
        f"{settings['temperature']:g}, top-k {settings['top_k']}, top-p {settings['top_p']:g}, {limit}batches of "
        f"{record['workload']['batch_size']}, {weights}{models['dtype']}, {machine_name(run)}, commit "
        f"{run['commit'][:7]}: `{run['command']}`. {record_link(name)}"
    )
