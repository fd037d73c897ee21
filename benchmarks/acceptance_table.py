"""Tokens per call and perplexity of every method on one pair of models, as one table.

    python benchmarks/acceptance_table.py --prompts FOLDER --record benchmarks/records/NAME.json

FOLDER holds `mt_bench/question.jsonl` and `spec_bench/question.jsonl`. Evenly spaced questions of both are decoded
with every method at temperature 1, top-k 10, top-p 0.9. A killed run goes on where it was when given the same record.
"""

import argparse
import json
import math
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from tqdm import tqdm

import mtad
from mtad import Engine, GenerationResult


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    label: str
    settings: dict[str, Any]


def _joint(method: str, draw: str, threshold: float, gamma: int = 4, width: int = 4) -> Row:
    settings = {"method": method, "draw": draw, "threshold": threshold, "gamma": gamma, "beam_width": width}
    return Row(f"{method} gamma {gamma}, width {width}, {draw}, tau {threshold}", settings)


ROWS = (
    Row("autoregressive sampling", {"method": "autoregressive"}),
    Row("greedy", {"method": "autoregressive", "temperature": 0.0}),
    Row("speculative, gamma 4", {"method": "speculative"}),
    _joint("mmtad", "top", 0.9),
    _joint("mtad", "top", 0.5),
    _joint("mmtad", "gumbel", 0.9),
    _joint("mmtad", "sample", 0.9),
    _joint("mtad", "top", 0.9),
    _joint("mmtad", "top", 0.5),
    _joint("mtad", "gumbel", 0.5),
    _joint("mmtad", "gumbel", 0.5),
    _joint("mtad", "top", 0.1),
    _joint("mmtad", "top", 0.1),
    _joint("mtad", "sample", 0.5),
    _joint("mmtad", "top", 0.5, gamma=6, width=8),
    _joint("mtad", "top", 0.3),
    _joint("mtad", "top", 0.5, gamma=8),
    _joint("mmtad", "sample", 0.5),
)


def main() -> int:
    """Run the command line."""
    options = _parse()
    prompts = read_questions(options.prompts, options.num_prompts)
    if options.record.exists():
        record: dict[str, Any] = json.loads(options.record.read_text(encoding="utf-8"))
    else:
        record = open_record(len(prompts))
    if options.merge is not None:
        merge(record, json.loads(options.merge.read_text(encoding="utf-8")))
        write_record(options.record, record)
        print(to_markdown(record))
        return 0
    engine = Engine.from_pretrained(options.target, draft=options.draft, dtype=options.dtype, device=options.device)
    record["models"] = {
        "dtype": engine.models.options.dtype,
        "device": engine.models.options.device,
        "target": options.target,
        "draft": options.draft or "the pair's own",
    }
    rows = [row for row in ROWS if options.only is None or any(text in row.label for text in options.only)]
    for row in tqdm(rows, unit="method"):
        if row.label not in record["rows"]:
            record["rows"][row.label] = measure(engine, prompts, row, options) | {"commit": _git("rev-parse", "HEAD")}
            write_record(options.record, record)
    print(to_markdown(record))
    print(json.dumps(record["rows"]))
    return 0


def read_questions(folder: Path, count: int) -> list[str]:
    """First turns of evenly spaced questions, half from each file, texts over 2,000 characters left out."""
    chosen: list[str] = []
    for name in ("mt_bench", "spec_bench"):
        lines = (folder / name / "question.jsonl").read_text(encoding="utf-8").splitlines()
        turns = [json.loads(line)["turns"][0] for line in lines]
        short = [turn for turn in turns if len(turn) <= 2000]
        half = count // 2
        chosen += [short[index * len(short) // half] for index in range(half)]
    return chosen


def measure(engine: Engine, prompts: list[str], row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Decode all prompts with one method."""
    settings: dict[str, Any] = {"gamma": 4, "beam_width": 4, "threshold": 0.5, "draw": "top"}
    settings |= {"temperature": 1.0, "top_k": 10, "top_p": 0.9, "max_new_tokens": options.max_new_tokens}
    settings |= row.settings
    started = perf_counter()
    results: list[GenerationResult] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        results += engine.generate(prompts, seed=seed, batch_size=options.batch_size, **settings)
    return summarize(results, settings, perf_counter() - started)


def summarize(results: list[GenerationResult], settings: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """Token-weighted figures over all answers."""
    num_tokens = sum(result.stats.num_tokens for result in results)
    calls = sum(result.stats.target_calls for result in results)
    log_probs = [value for result in results for value in result.log_probs]
    per_document = [sum(result.log_probs) / len(result.log_probs) for result in results]
    depth = max(len(result.stats.acceptance_by_depth) for result in results)
    kept = [length for result in results for length in result.accepted_lengths]
    return {
        "settings": settings,
        "tokens_per_call": num_tokens / calls,
        "perplexity": math.exp(-sum(log_probs) / len(log_probs)),
        "perplexity_of_mean_document": math.exp(-sum(per_document) / len(per_document)),
        "acceptance_by_depth": [sum(length > level for length in kept) / len(kept) for level in range(depth)],
        "tokens_per_answer": num_tokens / len(results),
        "share_cut_at_limit": sum(result.finish_reason == "length" for result in results) / len(results),
        "num_answers": len(results),
        "wall_s": wall_s,
    }


def merge(record: dict[str, Any], other: dict[str, Any]) -> None:
    """Pool the rows that both records have, as if their answers had been measured together."""
    for label in record["rows"].keys() & other["rows"].keys():
        record["rows"][label] = pool(record["rows"][label], other["rows"][label])
    record.setdefault("pooled_with", []).append({key: other[key] for key in ("command", "commit", "machine")})


def pool(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One row for the answers of two; both must have been measured with the same settings."""
    if first["settings"] != second["settings"]:
        raise SystemExit(
            f"got rows of different settings, expected the same: {first['settings']}, {second['settings']}"
        )
    parts = (first, second)
    answers = [part["num_answers"] for part in parts]
    tokens = [part["tokens_per_answer"] * part["num_answers"] for part in parts]
    calls = [count / part["tokens_per_call"] for count, part in zip(tokens, parts, strict=True)]

    def mean(values: list[float], weights: list[float]) -> float:
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    def log_mean(key: str, weights: list[float]) -> float:
        return math.exp(mean([math.log(part[key]) for part in parts], weights))

    depths = zip(*(part["acceptance_by_depth"] for part in parts), strict=True)
    return first | {
        "tokens_per_call": sum(tokens) / sum(calls),
        "perplexity": log_mean("perplexity", tokens),
        "perplexity_of_mean_document": log_mean("perplexity_of_mean_document", answers),
        "acceptance_by_depth": [mean(list(shares), calls) for shares in depths],
        "tokens_per_answer": sum(tokens) / sum(answers),
        "share_cut_at_limit": mean([part["share_cut_at_limit"] for part in parts], answers),
        "num_answers": sum(answers),
        "wall_s": first["wall_s"] + second["wall_s"],
    }


def to_markdown(record: dict[str, Any]) -> str:
    """The table, with every method beside sampling and speculative decoding."""
    rows = record["rows"]
    sampling = rows.get("autoregressive sampling", {}).get("perplexity", math.nan)
    lines = [
        "| method | tokens per call | perplexity | against sampling | tokens per answer | kept by depth |",
        "|---|---|---|---|---|---|",
    ]
    for label, row in rows.items():
        change = row["perplexity"] / sampling - 1
        depths = " ".join(f"{share:.2f}" for share in row["acceptance_by_depth"])
        lines.append(
            f"| {label} | {row['tokens_per_call']:.2f} | {row['perplexity']:.2f} | {change:+.1%} | "
            f"{row['tokens_per_answer']:.0f} | {depths} |"
        )
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens per call and perplexity of every method.")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with mt_bench and spec_bench")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write, or to go on with")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num-prompts", type=int, default=40)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--only", action="append", help="only rows whose label contains this text; may be repeated")
    parser.add_argument("--merge", type=Path, help="record of other seeds to pool into this one, without decoding")
    return parser.parse_args()


def open_record(num_prompts: int) -> dict[str, Any]:
    """An empty record that says how, on what and with which versions it was made."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "is_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {"processor": _processor(), "cores": torch.get_num_threads(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "mtad": mtad.__version__,
        },
        "num_prompts": num_prompts,
        "rows": {},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replace the file in one step, so that a kill leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
