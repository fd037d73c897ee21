"""Which gamma and beam width are fastest on this machine, side by side with single-token sampling.

    python benchmarks/draft_shape.py --prompts FOLDER --record benchmarks/records/NAME.json [flags of mtad compare]

`mtad compare` over shapes at batch 1: for every prompt all shapes are decoded in turn, so that a drift of the machine's
speed meets all of them; the last column is the median ratio of tokens per second.
"""

import argparse
import sys
from pathlib import Path

from mtad.cli.main import main as run_mtad

TREES = ((2, 2), (2, 4), (3, 2), (3, 3), (3, 4), (4, 2), (4, 3), (4, 4), (5, 3), (6, 4))
CONTENDERS = (
    "autoregressive",
    *(f"speculative:gamma={gamma}" for gamma in (2, 3, 4)),
    *(f"mtad:gamma={gamma},beam_width=4" for gamma in (2, 3, 4)),
    *(f"mmtad:gamma={gamma},beam_width={width}" for gamma, width in TREES),
)


def main() -> int:
    """Run the command line; flags it does not know are handed to `mtad compare`, where the last of two wins."""
    parser = argparse.ArgumentParser(description="Which gamma and beam width are fastest on this machine.")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with mt_bench and spec_bench")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write, or to go on with")
    options, further = parser.parse_known_args()
    arguments = ["compare", "--rules", *CONTENDERS, "--record", str(options.record), "--batch-size", "1"]
    for name in ("mt_bench", "spec_bench"):
        arguments += ["--prompts-file", str(options.prompts / name / "question.jsonl")]
    arguments += ["--max-prompt-characters", "2000", "--num-prompts", "8", "--max-new-tokens", "64"]
    return run_mtad([*arguments, *further])


if __name__ == "__main__":
    sys.exit(main())
