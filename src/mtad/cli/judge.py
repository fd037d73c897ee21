"""`mtad judge`: answers to MT-Bench are rated by a language model."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from mtad.cli.tables import format_table
from mtad.errors import ConfigError

DESCRIPTION = """Rate the MT-Bench answers of an evaluation from 1 to 10 with any OpenAI-compatible
endpoint. Judgements are kept and not asked for again."""

EXAMPLES = """examples:
  mtad judge runs/chat --data ./data --endpoint http://localhost:8000/v1 --model judge

The environment's MTAD_JUDGE_KEY is sent as bearer token where it is set. A judge that
is silent or gives no rating is asked three times; then the turn is marked.
"""


def add_command(commands: Any) -> None:
    """Add the `judge` subcommand."""
    parser = commands.add_parser(
        "judge",
        help="have MT-Bench answers rated",
        usage="%(prog)s RUN --data DIR --endpoint URL --model NAME",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of an evaluation with mt_bench")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--endpoint", metavar="URL", help="base address of the API, up to /v1")
    parser.add_argument("--model", metavar="NAME", help="the judge")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="X", help="seconds to wait (default: 60)")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    if options.data is None or not options.endpoint or not options.model:
        raise ConfigError("judge needs --data DIR, --endpoint URL and --model NAME")
    if not options.endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"--endpoint must begin with http:// or https://, got {options.endpoint!r}")

    from mtad.evaluation.judging import Endpoint, judge_answers
    from mtad.results.item_log import read_entries

    entries = read_entries(options.run_folder / "items.jsonl")
    if not any(entry["task"] == "mt_bench" for entry in entries):
        raise ConfigError(f"{options.run_folder} has no answers to mt_bench; evaluate that task first")
    endpoint = Endpoint(url=options.endpoint, key=os.environ.get("MTAD_JUDGE_KEY", ""), timeout_s=options.timeout)
    log = options.run_folder / "judgements.jsonl"
    judgements = judge_answers(entries, options.data, options.model, endpoint.ask, log)
    marked = [found for found in judgements if found["rating"] is None]
    if marked:
        print(f"mtad: {len(marked)} of {len(judgements)} turns have no rating: {marked[0]['problem']}", file=sys.stderr)
    print(format_table(("contender", "turn 1", "turn 2", "rated", "not rated"), _lines(judgements)))
    return 0


def _lines(judgements: list[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for label in dict.fromkeys(found["contender"] for found in judgements):
        own = [found for found in judgements if found["contender"] == label]
        cells = [label]
        for turn in (1, 2):
            ratings = [one["rating"] for one in own if one["turn"] == turn and one["rating"] is not None]
            cells.append(f"{sum(ratings) / len(ratings):.2f}" if ratings else "")
        num_rated = sum(found["rating"] is not None for found in own)
        lines.append([*cells, str(num_rated), str(len(own) - num_rated)])
    return lines
