"""`mtad bench`: methods, and transformers' own, timed side by side."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.generate import load_engine
from mtad.cli.parser import add_common, read_settings
from mtad.cli.tables import format_table
from mtad.config import Setting
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.bench.workloads import SpeedWorkload
    from mtad.results.speed import SpeedSummary

DESCRIPTION = """Time methods side by side on the same prompts in one process, and transformers' own
generate beside them. Contenders take turns batch by batch, after a batch to warm up."""

EXAMPLES = """examples:
  mtad bench --quick
  mtad bench --rules autoregressive speculative mmtad --record bench.json
  mtad bench --prompt-tokens 32 512 --new-tokens 64 256 --batch-sizes 1 8 --repeats 7
  mtad bench --temperatures 0 1 --rules transformers mmtad:gamma=4,beam_width=4

A contender is a rule, a rule with a drafter, or a method, as in mtad compare, or
transformers (its generate) or transformers_assisted (with the same draft).

prefill       milliseconds until decoding begins, the median
tokens/s      decoded tokens by seconds of decoding, the median (95% interval)
speed         tokens/s against the first contender on the same batches, the median
tokens/call   emitted tokens by calls of the target
perplexity    of the answers under the target at temperature 1

A killed run goes on where it was when it is given the same --record.
"""

DEFAULT_RULES = (
    "transformers",
    "transformers_assisted",
    "autoregressive",
    "speculative",
    "mtad",
    "mmtad",
    "mmtad:gamma=4,beam_width=4",
)
PROMPT_TOKENS = Setting(
    name="prompt_tokens", help="shortest prompt; 0: plain questions", type=int, default=0, minimum=0
)
NEW_TOKENS = Setting(name="new_tokens", help="tokens of every answer", type=int, default=128, minimum=2)
BATCH_SIZES = Setting(name="batch_sizes", help="prompts decoded at once", type=int, default=1, minimum=1, maximum=256)
TEMPERATURES = Setting(
    name="temperatures", help="sampling temperature; 0 is greedy", type=float, default=1.0, minimum=0
)
REPEATS = Setting(name="repeats", help="measured batches of each contender", type=int, default=5, minimum=1)
LISTS = (PROMPT_TOKENS, NEW_TOKENS, BATCH_SIZES, TEMPERATURES)
QUICK_TOKENS, QUICK_REPEATS = 48, 3
HEADINGS = ("contender", "prefill ms", "tokens/s", "(95% interval)", "speed", "tokens/call", "perplexity")


def add_command(commands: Any) -> None:
    """Add the `bench` subcommand."""
    parser = commands.add_parser(
        "bench",
        help="time methods and transformers' own side by side",
        usage="%(prog)s [--quick] [--rules NAME ...] [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--rules", nargs="+", metavar="NAME", default=list(DEFAULT_RULES), help="contenders, see below")
    for item in LISTS:
        parser.add_argument(
            "--" + item.name.replace("_", "-"),
            nargs="+",
            type=item.type,
            metavar="N" if item.type is int else "X",
            default=[item.default],
            help=f"{item.help}; one workload for each (default: {item.default:g})",
        )
    parser.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        default=REPEATS.default,
        help=f"{REPEATS.help} (default: {REPEATS.default})",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_REPEATS} repeats of {QUICK_TOKENS} tokens, for a first look"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON file to write, or to go on with")
    parser.add_argument("--json", action="store_true", help="the table as one JSON document on stdout, nothing else")
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    _check(options)

    from mtad.api.contenders import parse_contenders
    from mtad.bench.peers import PEER_NAMES
    from mtad.bench.workloads import SpeedWorkload
    from mtad.decoding import needs_draft_model

    peers = [name for name in options.rules if name in PEER_NAMES]
    contenders = parse_contenders([name for name in options.rules if name not in PEER_NAMES], generation)
    drafting = [item.options for item in contenders if needs_draft_model(item.options)]
    demanding = (drafting or [item.options for item in contenders] or [generation])[0]
    engine = load_engine(models, demanding, color=options.color, keeps_draft=PEER_NAMES[1] in peers)
    new_tokens = [QUICK_TOKENS] if options.quick else options.new_tokens
    workloads = [
        SpeedWorkload(prompt_tokens=length, new_tokens=count, batch_size=size, temperature=temperature)
        for length in options.prompt_tokens
        for count in new_tokens
        for size in options.batch_sizes
        for temperature in options.temperatures
    ]

    from mtad.bench.speed import build_runners, open_speed_record

    runners = build_runners(engine, contenders, peers, generation)
    setup = {"workloads": [asdict(item) | {"label": item.label} for item in workloads]}
    record = open_speed_record(engine, contenders, peers, **setup)
    return _measure(engine, runners, workloads, record, options)


def _check(options: argparse.Namespace) -> None:
    for item in LISTS:
        for value in getattr(options, item.name):
            item.check(value)
    REPEATS.check(options.repeats)
    for name in ("method", "drafter", "verifier", "temperature", "max_new_tokens"):
        if name in vars(options):
            flag = {"temperature": "--temperatures", "max_new_tokens": "--new-tokens"}.get(name, "--rules")
            raise ConfigError(f"bench takes no --{name.replace('_', '-')}; use {flag} instead")


def _measure(
    engine: Any,
    runners: dict[str, Any],
    workloads: "list[SpeedWorkload]",
    record: dict[str, Any],
    options: argparse.Namespace,
) -> int:
    from tqdm import tqdm

    from mtad.bench.speed import continue_speed_record, run_speed
    from mtad.results.files import read_json, write_json

    if options.record is not None:
        if options.record.exists():
            record = continue_speed_record(read_json(options.record), record)
        write_json(options.record, record)
    repeats = QUICK_REPEATS if options.quick else options.repeats
    status = 0
    with tqdm(total=len(runners) * len(workloads) * (repeats + 1), unit="batch", disable=None, leave=False) as bar:

        def note(label: str) -> None:
            bar.set_postfix_str(label, refresh=False)
            bar.update()
            if options.record is not None:
                write_json(options.record, record)

        try:
            run_speed(engine, runners, workloads, repeats, record, note)
        except KeyboardInterrupt:
            print("[interrupted]", file=sys.stderr)
            status = 130
    _show(record, next(iter(runners)), options.json)
    return status


def _show(record: dict[str, Any], baseline: str, is_json: bool) -> None:
    from mtad.results.speed import speed_to_json, summarize_speed

    summaries = summarize_speed(record, baseline)
    if is_json:
        from mtad.cli.output import to_json

        facts = {key: record[key] for key in ("run", "models", "threads", "skipped")}
        workloads = record["setup"]["workloads"]
        print(to_json(facts | {"workloads": workloads, "baseline": baseline, "rows": speed_to_json(summaries)}))
        return
    for number, workload in enumerate(record["setup"]["workloads"]):
        rows = [_cells(item) for item in summaries if item.workload == number]
        if rows:
            print(f"{workload['label']}, {record['models']['dtype']}, {record['threads']} threads")
            print(format_table(HEADINGS, rows))
        for label, reason in record["skipped"].get(workload["label"], {}).items():
            print(f"{label}: not measured, {reason}")


def _cells(item: "SpeedSummary") -> list[str]:
    speed = item.tokens_per_s
    return [
        item.label,
        f"{item.prefill_ms:.0f}",
        f"{speed.value:.1f}",
        f"({speed.low:.1f} to {speed.high:.1f})",
        "" if item.ratio is None else f"{item.ratio.value:.2f}x",
        "" if item.tokens_per_call is None else f"{item.tokens_per_call:.2f}",
        f"{item.perplexity:.2f}",
    ]
