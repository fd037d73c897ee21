"""Which gamma and beam width are fastest on this machine, side by side with single-token decoding.

    python benchmarks/draft_shape.py --prompts FOLDER --record benchmarks/records/NAME.json

For every prompt all shapes are decoded in turn at batch 1, so that a drift of the machine's speed meets all of them.
The figure is the median over prompts of the ratio of tokens per second against single-token sampling.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from acceptance_table import open_record, read_questions, write_record
from tqdm import tqdm

from mtad import Engine

SINGLE: dict[str, Any] = {"method": "autoregressive"}
SPECULATIVE: list[dict[str, Any]] = [{"method": "speculative", "gamma": gamma} for gamma in (2, 4)]
CHAINS: list[dict[str, Any]] = [{"method": "mtad", "gamma": gamma, "beam_width": 4} for gamma in (2, 3, 4)]
TREES: list[dict[str, Any]] = [
    {"method": "mmtad", "gamma": gamma, "beam_width": width}
    for gamma, width in ((2, 2), (2, 4), (3, 2), (3, 3), (3, 4), (4, 2), (4, 3), (4, 4), (5, 3), (6, 4))
]


def label(shape: dict[str, Any]) -> str:
    """A name for one shape."""
    return " ".join(str(value) for value in shape.values())


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Which gamma and beam width are fastest on this machine.")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with mt_bench and spec_bench")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()
    engine = Engine.from_pretrained(options.target, draft=options.draft, dtype=options.dtype, device=options.device)
    shapes = [SINGLE, *SPECULATIVE, *CHAINS, *TREES]
    prompts = read_questions(options.prompts, options.num_prompts)
    speeds: dict[str, list[float]] = {label(shape): [] for shape in shapes}
    per_call: dict[str, list[float]] = {label(shape): [] for shape in shapes}
    engine.generate(prompts[0], max_new_tokens=8, seed=0)
    for prompt in tqdm(prompts, unit="prompt"):
        for shape in shapes:
            stats = engine.generate(prompt, max_new_tokens=options.max_new_tokens, seed=1, **shape).stats
            speeds[label(shape)].append(stats.tokens_per_s)
            per_call[label(shape)].append(stats.tokens_per_call)
    record = open_record(len(prompts))
    record["models"] = {"dtype": engine.models.options.dtype, "device": engine.models.options.device}
    record["rows"] = {name: _summary(speeds, per_call, name) for name in speeds}
    write_record(options.record, record)
    print(to_markdown(record["rows"]))
    return 0


def to_markdown(rows: dict[str, Any]) -> str:
    """The table, fastest first."""
    lines = ["| method, gamma, width | tokens/s against single-token sampling | tokens per call |", "|---|---|---|"]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["speed_ratio"]):
        lines.append(f"| {name} | {row['speed_ratio']:.2f} | {row['tokens_per_call']:.2f} |")
    return "\n".join(lines)


def _summary(speeds: dict[str, list[float]], per_call: dict[str, list[float]], name: str) -> dict[str, Any]:
    ratios = [speed / single for speed, single in zip(speeds[name], speeds[label(SINGLE)], strict=True)]
    return {
        "speed_ratio": statistics.median(ratios),
        "speed_ratios": ratios,
        "tokens_per_call": statistics.mean(per_call[name]),
        "tokens_per_s": statistics.median(speeds[name]),
    }


if __name__ == "__main__":
    sys.exit(main())
