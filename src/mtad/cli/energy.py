"""`mtad energy`: joules per token under patterns of requests, contenders in turns."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.generate import describe_twins, load_engine
from mtad.cli.parser import add_common, read_settings
from mtad.cli.tables import format_table
from mtad.config import GenerationOptions, ModelOptions, Setting
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.bench.energy import EnergyPlan
    from mtad.energy import EnergyMeter
    from mtad.results.energy import EnergySummary

DESCRIPTION = """Measure what methods take in joules while requests come steadily, in bursts or now and
then, and what drafting and verifying take by themselves. Joules come from hardware
counters; where there are none, the table has speeds and says why there are no joules."""

EXAMPLES = """examples:
  mtad energy --quick
  mtad energy --record energy.json          then: mtad report energy.json
  mtad energy --rules speculative mmtad --batch-sizes 1 8 32 --prompt-tokens 0 512
  mtad energy --meter rapl --patterns steady --window 10

A contender is a rule, a rule with a drafter, or a method, as in mtad compare.

J/token       joules of the whole window by tokens, the median (95% interval where there is
              more than one window): prompts, waiting and the machine at rest included
net           the same without what the machine takes at rest
saving        speculative's J/token by this one's on the same requests
draft, verify joules or milliseconds of an iteration's two halves, each measured alone
tokens/s      tokens by seconds of work, prompts included, waiting left out, the median
latency       seconds from a request's time to its whole answer, the median
busy          share of the window that was not spent waiting for requests

Meters: auto (zeus, else NVML and RAPL), zeus, nvml, rapl, none, replay:FILE. How to
let RAPL be read: docs/energy.md. A killed run goes on with the same --record.
"""

DEFAULT_RULES = ("autoregressive", "speculative", "mtad", "mmtad")
BATCH_SIZES = Setting(name="batch_sizes", help="requests decoded at once", type=int, default=1, minimum=1, maximum=256)
PROMPT_TOKENS = Setting(
    name="prompt_tokens", help="shortest prompt; 0: plain questions", type=int, default=0, minimum=0
)
NEW_TOKENS = Setting(name="new_tokens", help="tokens of every answer", type=int, default=128, minimum=2)
LISTS = (BATCH_SIZES, PROMPT_TOKENS, NEW_TOKENS)
REPEATS = Setting(name="repeats", help="windows of each contender", type=int, default=3, minimum=1)
WINDOW = Setting(name="window", help="seconds of a window at least", type=float, default=5.0, minimum=2)
PATTERN_NAMES = ("steady", "bursty", "idle")
QUICK_TOKENS, QUICK_REPEATS, QUICK_WINDOW_S = 32, 1, 2.0
SPEED_HEADINGS = ("tokens/s", "latency s", "busy", "tokens/call", "perplexity")
JOULE_HEADINGS = ("J/token", "(95% interval)", "net", "J/answer", "saving", "draft J", "verify J")
TIME_HEADINGS = ("J/token", "draft ms", "verify ms")


def add_command(commands: Any) -> None:
    """Add the `energy` subcommand."""
    parser = commands.add_parser(
        "energy",
        help="measure joules per token under patterns of requests",
        usage="%(prog)s [--quick] [--rules NAME ...] [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--rules", nargs="+", metavar="NAME", default=list(DEFAULT_RULES), help="contenders, see above")
    parser.add_argument(
        "--patterns",
        nargs="+",
        metavar="NAME",
        default=list(PATTERN_NAMES),
        help=f"how requests come: {', '.join(PATTERN_NAMES)} (default: all)",
    )
    for item in LISTS:
        parser.add_argument(
            "--" + item.name.replace("_", "-"),
            nargs="+",
            type=item.type,
            metavar="N",
            default=[item.default],
            help=f"{item.help}; one workload for each (default: {item.default:g})",
        )
    for item in (REPEATS, WINDOW):
        parser.add_argument(
            f"--{item.name}",
            type=item.type,
            metavar="N" if item.type is int else "X",
            default=item.default,
            help=f"{item.help} (default: {item.default:g})",
        )
    add_meter_flag(parser)
    parser.add_argument(
        "--quick", action="store_true", help=f"one window of {QUICK_WINDOW_S:g} s, {QUICK_TOKENS} tokens: a first look"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON file to write, or to go on with")
    parser.add_argument("--json", action="store_true", help="the table as one JSON document on stdout, nothing else")
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def add_meter_flag(parser: argparse.ArgumentParser) -> None:
    """`--meter`."""
    parser.add_argument(
        "--meter",
        default="auto",
        metavar="NAME",
        help="where joules come from: auto, zeus, nvml, rapl, none, or replay:FILE (default: auto)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    if options.quick:
        options.new_tokens, options.repeats, options.window = [QUICK_TOKENS], QUICK_REPEATS, QUICK_WINDOW_S
    return measure_energy(options, models, generation)


def measure_energy(
    options: argparse.Namespace, models: ModelOptions, generation: GenerationOptions, **facts: str
) -> int:
    """Measure what the flags of `add_command` ask for and show it; returns the exit status.

    Args:
        options: Those flags.
        models: Which models.
        generation: Settings that all contenders share.
        **facts: What the record says besides.
    """
    check_flags(options)
    generation = generation.for_measurement()

    from mtad.api.contenders import parse_contenders
    from mtad.bench.energy import (
        EnergyPlan,
        EnergyWorkload,
        continue_energy_record,
        open_energy_record,
        split_contenders,
        synchronizer,
    )
    from mtad.decoding import needs_draft_model
    from mtad.energy import open_meter
    from mtad.results.files import begin_record

    contenders, skipped = split_contenders(parse_contenders(options.rules, generation))
    plan = EnergyPlan(
        contenders=contenders,
        workloads=[
            EnergyWorkload(pattern=pattern, batch_size=size, prompt_tokens=length, new_tokens=count)
            for length in options.prompt_tokens
            for count in options.new_tokens
            for size in options.batch_sizes
            for pattern in dict.fromkeys(options.patterns)
        ],
        repeats=options.repeats,
        window_s=options.window,
    )
    meter = open_meter(options.meter)
    try:
        demanding = next((one.options for one in contenders if needs_draft_model(one.options)), contenders[0].options)
        engine = load_engine(models, demanding, color=options.color)
        meter.synchronize = synchronizer(engine)
        record = open_energy_record(engine, plan, meter, skipped) | facts
        if options.record is not None:
            record = begin_record(options.record, record, continue_energy_record)
        return _measure(engine, plan, meter, record, options)
    finally:
        meter.close()


def check_flags(options: argparse.Namespace) -> None:
    """Refuse values out of bounds, and flags that the contenders and workloads set themselves.

    Raises:
        ConfigError: The first of them.
    """
    for item in LISTS:
        for value in getattr(options, item.name):
            item.check(value)
    REPEATS.check(options.repeats)
    WINDOW.check(options.window)
    unknown = [name for name in options.patterns if name not in PATTERN_NAMES]
    if unknown:
        raise ConfigError(f"unknown pattern {unknown[0]!r}; known are {', '.join(PATTERN_NAMES)}")
    for name in ("method", "drafter", "verifier", "max_new_tokens"):
        if name in vars(options):
            flag = "--new-tokens" if name == "max_new_tokens" else "--rules"
            raise ConfigError(f"energy takes no --{name.replace('_', '-')}; use {flag} instead")


def _measure(
    engine: Any, plan: "EnergyPlan", meter: "EnergyMeter", record: dict[str, Any], options: argparse.Namespace
) -> int:
    from tqdm import tqdm

    from mtad.bench.energy import run_energy
    from mtad.results.files import write_json

    if not options.json:
        print(meter.describe())
    status = 0
    with tqdm(total=plan.num_windows, unit="window", disable=None, leave=False) as bar:

        def note(label: str) -> None:
            bar.set_postfix_str(label, refresh=False)
            bar.update()
            if options.record is not None:
                write_json(options.record, record)

        try:
            run_energy(engine, plan, meter, record, note)
        except KeyboardInterrupt:
            print("[interrupted]", file=sys.stderr)
            status = 130
    _show(record, as_json=options.json)
    return status


def _show(record: dict[str, Any], *, as_json: bool) -> None:
    from mtad.results.energy import energy_to_json, summarize_energy

    summaries = summarize_energy(record)
    if as_json:
        from mtad.cli.output import to_json

        facts = {key: record[key] for key in ("run", "models", "threads", "meter", "setup", "skipped", "idle")}
        print(to_json(facts | {"rows": energy_to_json(summaries)}))
        return
    if record["idle"]:
        reading = record["idle"][-1]
        watts = [f"{scope} {joules / reading['seconds']:.1f} W" for scope, joules in reading["joules"].items()]
        print(f"at rest, models loaded: {', '.join(watts) or 'not measured'}")
    twins = describe_twins(ModelOptions(**record["models"]))
    for number, workload in enumerate(record["setup"]["workloads"]):
        rows = [item for item in summaries if item.workload == number]
        if rows:
            print(f"\n{workload['label']}, {record['models']['dtype']}, {record['threads']} threads")
            print("".join(f"{line}\n" for line in [twins] if line) + _table(rows))
    for label, reason in record["skipped"].items():
        print(f"{label}: left out, {reason}")


def _table(rows: "Sequence[EnergySummary]") -> str:
    has_joules = any(row.joules_per_token is not None for row in rows)
    headings = ("contender", *(JOULE_HEADINGS if has_joules else TIME_HEADINGS), *SPEED_HEADINGS)
    reasons = dict.fromkeys(f"{row.label}: not measured: {row.reason}" for row in rows if row.reason and has_joules)
    table = format_table(headings, [_cells(row, has_joules=has_joules) for row in rows])
    return "\n".join([table, *reasons])


def _cells(row: "EnergySummary", *, has_joules: bool) -> list[str]:
    speed = [
        f"{row.tokens_per_s.value:.1f}",
        f"{row.latency_s:.2f}",
        f"{row.busy_share:.0%}",
        f"{row.tokens_per_call:.2f}",
        f"{row.perplexity:.2f}",
    ]
    if not has_joules:
        return [row.label, "not measured", _number(row.draft_ms, ".1f"), _number(row.score_ms, ".1f"), *speed]
    token, net, saving = row.joules_per_token, row.net_joules_per_token, row.saving
    return [
        row.label,
        "not measured" if token is None else _number(token.value),
        "" if token is None or row.num_windows == 1 else f"({_number(token.low)} to {_number(token.high)})",
        _number(None if net is None else net.value),
        _number(row.joules_per_answer),
        "" if saving is None else f"{saving.value:.2f}x",
        _number(row.draft_joules),
        _number(row.score_joules),
        *speed,
    ]


def _number(value: float | None, spec: str | None = None) -> str:
    """A number, joules unless it has a format of its own."""
    from mtad.results.energy import joule_format

    return "" if value is None else f"{value:{spec or joule_format(value)}}"
