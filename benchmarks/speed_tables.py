"""Tables of speed records: ours beside peers, on CPUs and CUDA devices."""

from typing import Any

from markdown_tables import markdown_table, record_link

from mtad.results.intervals import Estimate
from mtad.results.provenance import machine_name
from mtad.results.speed import SpeedSummary, summarize_speed

OTHERS = ("speculative", "llama_cpp")
"""Contenders that all are compared with beside the first peer."""


def speed_lines(name: str, record: dict[str, Any]) -> str:
    """Our methods beside transformers' own, in Markdown."""
    has_accelerator = bool(record["run"]["machine"].get("accelerators"))
    headings = ["contender", "tokens/s (95% interval)", "speed", "tokens per call", "perplexity", "prefill, ms"]
    cells = [_cells(item) for item in summarize_speed(record, record["setup"]["peers"][0])]
    summaries = summarize_speed(record, None)
    for other in OTHERS:
        if any(item.label == other for item in summaries):
            headings.append(f"against `{other}`")
            for line, item in zip(cells, summarize_speed(record, other), strict=True):
                line.append(_ratio(item))
    if has_accelerator:
        headings.append("floor")
        for line, item in zip(cells, summaries, strict=True):
            line.append("" if item.floor_share is None else f"{item.floor_share:.0%}")
    if len(_measured(record)) > 1:
        headings.insert(0, "batch")
        for line, item in zip(cells, summaries, strict=True):
            line.insert(0, str(record["setup"]["workloads"][item.workload]["batch_size"]))
    rows = [headings, ["---"] * len(headings), *cells]
    return markdown_table(rows, _caption(name, record))


def _caption(name: str, record: dict[str, Any]) -> str:
    run, workloads = record["run"], _measured(record)
    settings = next(iter(record["setup"]["contenders"].values()))
    weights = "8-bit weights of target and draft, " if record["models"].get("quantization") == "int8" else ""
    threads = f"{record['threads']} threads on {run['machine']['cores']} cores of an {machine_name(run)} processor"
    machine = f"one {machine_name(run)}" if run["machine"].get("accelerators") else threads
    count = 1 + max(item["repeat"] for item in record["samples"])
    labels = "; ".join(item["label"] for item in workloads)
    return (
        f"{labels[0].upper()}{labels[1:]}; {_twins(record['models'])}gamma {settings['gamma']} and width "
        f"{settings['beam_width']} unless told, top-k 10, "
        f"top-p 0.9, {count} prompt{'s' if count > 1 else ''} in turns; "
        f"{weights}{record['models']['dtype']}, {machine}, commit {run['commit'][:7]}. "
        f"{record_link(name)}"
    )


def _measured(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The workloads that have been reached."""
    reached = {item["workload"] for item in record["samples"]}
    return [item for number, item in enumerate(record["setup"]["workloads"]) if number in reached]


def product_lines(name: str, record: dict[str, Any], tokens: tuple[int, ...] = (1, 4, 17)) -> str:
    """Matrix products of a few tokens as shares of the memory bandwidth, torch's beside ours, in Markdown."""
    ways: dict[tuple[str, str], list[Any]] = {}
    for item in record["products"]:
        ways.setdefault((item["model"], item["name"]), []).append(item)
    places = [record["tokens"].index(count) for count in tokens]
    headings = ["model", "product", "MB", *(f"{count} token{'s' if count > 1 else ''}" for count in tokens)]
    rows = [headings, ["---"] * len(headings)]
    for (model, product), found in ways.items():
        size = found[0]["bytes"]
        floor = size / record["bandwidth"]
        cells = [" / ".join(f"{floor / way['seconds'][place]:.0%}" for way in found) for place in places]
        rows.append([model, product, f"{size / 1e6:.0f}", *cells])
    caption = (
        f"Shares of {record['bandwidth'] / 1e12:.2f} TB/s, torch / ours where measured; bfloat16, weights not in the "
        f"cache, one {record['device']}, commit {record['run']['commit'][:7]}: `{record['run']['command']}`. "
        f"{record_link(name)}"
    )
    return markdown_table(rows, caption)


def iteration_lines(name: str, record: dict[str, Any]) -> str:
    """Iterations of twins in milliseconds and as multiples of the floor, by modules and fused, in Markdown."""
    found: dict[tuple[str, ...], dict[bool, str]] = {}
    for row in record["rows"]:
        shape = f"{row['gamma']} x {row['beam_width']}" if row["method"] == "mmtad" else f"{row['gamma']}"
        place = (
            f"{row['target']} / {row['draft']}",
            f"`{row['method']}`",
            "" if row["method"] == "autoregressive" else shape,
            str(row["batch_size"]),
        )
        cell = f"{row['iteration_ms']:.2f} ({row['iteration_ms'] / row['floor_ms']:.2f})"
        found.setdefault(place, {})[row["is_fused"]] = cell
    rows = [["pair", "method", "gamma, width", "batch", "modules", "fused layers"], ["---"] * 6]
    rows += [[*place, cells.get(False, ""), cells.get(True, "")] for place, cells in found.items()]
    caption = (
        f"Milliseconds an iteration (times the floor); **cost twins** of a random pair, bfloat16, one "
        f"{machine_name(record['run'])}, commit {record['run']['commit'][:7]}: `{record['run']['command']}`"
        f"{' (' + record['note'] + ')' if 'note' in record else ''}. "
        f"{record_link(name)}"
    )
    return markdown_table(rows, caption)


def stage_lines(name: str, record: dict[str, Any]) -> str:
    """Milliseconds of an iteration by stage for every contender, in Markdown."""
    stages = list(next(iter(record["contenders"].values()))["stages"])
    headings = ["contender", *stages, "all"]
    rows = [headings, ["---"] * len(headings)]
    for label, found in record["contenders"].items():
        times = [found["stages"][stage]["wall_ms"] for stage in stages]
        rows.append([f"`{label}`", *(f"{time:.1f}" for time in (*times, sum(times)))])
    run, workload = record["run"], record["workload"]
    weights = "8-bit weights, " if record["models"].get("quantization") == "int8" else ""
    caption = (
        f"Milliseconds an iteration under torch's profiler, which adds to what it watches, and its own start "
        f"to the first contender, the prefill within the rest; "
        f"{workload['new_tokens']} new tokens, batch {workload['batch_size']}, {weights}{record['models']['dtype']}, "
        f"{record['threads']} threads of an {machine_name(run)}, commit {run['commit'][:7]}: `{run['command']}`. "
        f"{record_link(name)}"
    )
    return markdown_table(rows, caption)


def guard_lines(name: str, record: dict[str, Any]) -> str:
    """Drafts that pay and drafts that do not, guarded and not, in Markdown."""
    rows = [["draft", "not guarded", "guarded"], ["---"] * 3]
    ratios = record["speed_ratios"]
    drafts = dict.fromkeys(label.rpartition(", ")[0] for label in ratios if ", " in label)
    rows += [[draft, *(f"{ratios[f'{draft}, {way}']:.2f}x" for way in ("not guarded", "guarded"))] for draft in drafts]
    run, count = record["run"], len(next(iter(record["answers"].values())))
    caption = (
        f"Tokens/s against single tokens on the same prompts, medians of {count} answers of "
        f"{record['max_new_tokens']} tokens in turns, the target's prefill aside; `mmtad`, gamma 3 and width 3, "
        f"{record['models']['dtype']}, {record['threads']} threads of an {machine_name(run)}, commit "
        f"{run['commit'][:7]}. {record_link(name)}"
    )
    return markdown_table(rows, caption)


def _twins(models: dict[str, Any]) -> str:
    target, draft = models.get("target_shape"), models.get("draft_shape")
    if not target and not draft:
        return ""
    return f"**cost twins** of the default pair in the sizes of {target} and {draft}, not those models; "


def _cells(item: SpeedSummary) -> list[str]:
    speed = item.tokens_per_s
    return [
        f"`{item.label}`",
        _with_interval(speed, ".1f"),
        _ratio(item),
        "" if item.tokens_per_call is None else f"{item.tokens_per_call:.2f}",
        f"{item.perplexity:.2f}",
        f"{item.prefill_ms:.0f}",
    ]


def _ratio(item: SpeedSummary) -> str:
    return "" if item.ratio is None else _with_interval(item.ratio, ".2f", "x")


def _with_interval(found: Estimate, spec: str, unit: str = "") -> str:
    """A value with its interval, where several batches give one."""
    value = f"{found.value:{spec}}{unit}"
    return value if found.low == found.high else f"{value} ({found.low:{spec}} to {found.high:{spec}})"
