"""The table of methods on the default pair: `mtad compare` with the contenders and settings of the published one.

    python benchmarks/acceptance_table.py --prompts FOLDER --record benchmarks/records/NAME.json [flags of mtad compare]

FOLDER holds `mt_bench/question.jsonl` and `spec_bench/question.jsonl`. Evenly spaced questions of both, those over
2,000 characters left out, are decoded at temperature 1, top-k 10, top-p 0.9. A killed run goes on where it was when
given the same record.
"""

import argparse
import sys
from pathlib import Path

from mtad.cli.main import main as run_mtad

CONTENDERS = (
    "autoregressive",
    "autoregressive:temperature=0",
    "speculative",
    "mmtad:threshold=0.9",
    "mmtad:threshold=0.9,draw=gumbel",
    "mmtad:threshold=0.9,draw=sample",
    "mmtad:threshold=0.5",
    "mmtad:threshold=0.5,draw=gumbel",
    "mmtad:threshold=0.1",
    "mmtad:threshold=0.5,gamma=6,beam_width=8",
    "mtad:threshold=0.9",
    "mtad:threshold=0.5",
    "mtad:threshold=0.5,draw=gumbel",
    "mtad:threshold=0.5,draw=sample",
    "mtad:threshold=0.5,gamma=8",
    "mtad:threshold=0.3",
    "mtad:threshold=0.1",
)
SETTINGS = {"gamma": 4, "beam-width": 4, "temperature": 1.0, "top-k": 10, "top-p": 0.9, "max-new-tokens": 128}


def main() -> int:
    """Run the command line; flags it does not know are handed to `mtad compare`, where the last of two wins."""
    parser = argparse.ArgumentParser(description="Tokens per call and perplexity of every method.")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with mt_bench and spec_bench")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write, or to go on with")
    options, further = parser.parse_known_args()
    arguments = ["compare", "--rules", *CONTENDERS, "--record", str(options.record)]
    for name in ("mt_bench", "spec_bench"):
        arguments += ["--prompts-file", str(options.prompts / name / "question.jsonl")]
    arguments += ["--max-prompt-characters", "2000", "--num-prompts", "40", "--batch-size", "20"]
    for name, value in SETTINGS.items():
        arguments += [f"--{name}", str(value)]
    return run_mtad([*arguments, *further])


if __name__ == "__main__":
    sys.exit(main())
