"""`mtad bench`: methods, and transformers' own, timed side by side."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.bench_extras import (
    add_extras,
    energy_cell,
    measure_bench_energy,
    measure_memory,
    resolve_gguf,
    write_profiles,
)
from mtad.cli.bench_server import add_server, run_server
from mtad.cli.generate import describe_twins, load_engine
from mtad.cli.parser import add_common, read_settings
from mtad.cli.tables import format_table
from mtad.config import ModelOptions, Setting
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
  mtad bench --rules llama_cpp autoregressive mmtad --peak-memory
  mtad bench --rules autoregressive mmtad --profile profile.json
  mtad bench --target-shape smollm2-360m --draft-shape llama-3.2-1b
  mtad bench --server http://127.0.0.1:8000 --streams 1 8 64 --new-tokens 48 --record load.json
  mtad bench --server http://127.0.0.1:8000 --rates 0.5 1 2 --threshold 0.9

A contender is a rule, a rule with a drafter, or a method, as in mtad compare, or
transformers (its generate), transformers_static (over a static cache, compiled on CUDA
devices), transformers_assisted (with the same draft), or llama_cpp (llama.cpp on the same
target as a GGUF file; needs mtad[bench]).

prefill       milliseconds until decoding begins, the median
tokens/s      decoded tokens by seconds of decoding, the median (95% interval)
speed         tokens/s against the first contender on the same batches, the median
tokens/call   emitted tokens by calls of the target
perplexity    of the answers under the target at temperature 1
floor         share of the time that reading weights and cache once a call would take
peak MB       most memory that a process with this contender alone held (--peak-memory)
J/token       joules of whole runs, prompts included, by tokens (--energy); see mtad energy

With --server nothing is loaded: a running mtad serve is asked for streamed chats, --streams
at a time or --rates a second, with the decoding flags that are given as fields of the requests.

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
HEADINGS = ("contender", "prefill ms", "tokens/s", "(95% interval)", "speed", "tokens/call", "perplexity", "floor")


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
    add_extras(parser)
    add_server(parser)
    parser.add_argument("--json", action="store_true", help="the table as one JSON document on stdout, nothing else")
    add_common(parser, takes_profile=False)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    _check_lists(options)
    new_tokens = [QUICK_TOKENS] if options.quick else options.new_tokens
    if options.server is not None:
        return run_server(options, new_tokens)
    generation = generation.for_measurement()
    _check(options)

    from mtad.api.contenders import parse_contenders
    from mtad.bench.peers import LLAMA_CPP, PEER_NAMES, TRANSFORMERS_ASSISTED
    from mtad.bench.workloads import SpeedWorkload
    from mtad.decoding import needs_draft_model

    peers = [name for name in options.rules if name in PEER_NAMES]
    contenders = parse_contenders([name for name in options.rules if name not in PEER_NAMES], generation)
    drafting = [item.options for item in contenders if needs_draft_model(item.options)]
    demanding = (drafting or [item.options for item in contenders] or [generation])[0]
    weights = resolve_gguf(options.gguf, models) if LLAMA_CPP in peers else None
    engine = load_engine(models, demanding, color=options.color, keeps_draft=TRANSFORMERS_ASSISTED in peers)
    workloads = [
        SpeedWorkload(prompt_tokens=length, new_tokens=count, batch_size=size, temperature=temperature)
        for length in options.prompt_tokens
        for count in new_tokens
        for size in options.batch_sizes
        for temperature in options.temperatures
    ]

    from mtad.bench.speed import build_runners, continue_speed_record, open_speed_record
    from mtad.results.files import begin_record

    runners = build_runners(engine, contenders, peers, generation, weights)
    setup = {"workloads": [asdict(item) | {"label": item.label} for item in workloads]}
    record = open_speed_record(engine, contenders, peers, **setup)
    if options.record is not None:
        record = begin_record(options.record, record, continue_speed_record)
    status = _measure(engine, runners, workloads, record, options)
    if options.peak_memory and status == 0:
        record["peak_memory"] = measure_memory(options, models, generation, new_tokens)
    if options.energy and status == 0:
        repeats = QUICK_REPEATS if options.quick else options.repeats
        record["energy"] = measure_bench_energy(engine, contenders, workloads, repeats, options)
    _finish(record, options)
    if options.profile_file is not None and status == 0:
        profiles = write_profiles(engine, contenders, workloads[0], options.profile_file)
        if not options.json:
            print(profiles)
    return status


def _check_lists(options: argparse.Namespace) -> None:
    for item in LISTS:
        for value in getattr(options, item.name):
            item.check(value)
    REPEATS.check(options.repeats)


def _check(options: argparse.Namespace) -> None:
    given = [name for name in ("streams", "rates", "requests") if getattr(options, name) is not None]
    if given:
        raise ConfigError(f"--{given[0]} is for load on a server; name one with --server, or leave it out")
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

    from mtad.bench.speed import run_speed
    from mtad.results.files import write_json

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
    return status


def _finish(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the record once more and show it."""
    if options.record is not None:
        from mtad.results.files import write_json

        write_json(options.record, record)
    _show(record, [*record["setup"]["peers"], *record["setup"]["contenders"]][0], options.json)


def _show(record: dict[str, Any], baseline: str, is_json: bool) -> None:
    from mtad.results.speed import speed_to_json, summarize_speed

    summaries = summarize_speed(record, baseline)
    if is_json:
        from mtad.bench.memory import peak_memory
        from mtad.cli.output import to_json

        facts = {key: record[key] for key in ("run", "models", "threads", "bandwidth", "skipped")}
        facts |= {"peak_memory": peak_memory(), "peak_memory_alone": record.get("peak_memory")}
        facts |= {"energy": record["energy"]} if "energy" in record else {}
        workloads = record["setup"]["workloads"]
        print(to_json(facts | {"workloads": workloads, "baseline": baseline, "rows": speed_to_json(summaries)}))
        return
    peaks, energy = record.get("peak_memory"), record.get("energy")
    if energy is not None:
        print(energy["line"])
    headings = (*HEADINGS, *_peak_heading(peaks), *([] if energy is None else ["J/token"]))
    for number, workload in enumerate(record["setup"]["workloads"]):
        rows = [
            [*_cells(item), *_peak(peaks, item.label), *energy_cell(energy, number, item.label)]
            for item in summaries
            if item.workload == number
        ]
        if rows:
            twins = describe_twins(ModelOptions(**record["models"]))
            print(f"{workload['label']}, {record['models']['dtype']}, {record['threads']} threads")
            print("".join(f"{line}\n" for line in [twins] if line) + format_table(headings, rows))
        for label, reason in record["skipped"].get(workload["label"], {}).items():
            print(f"{label}: not measured, {reason}")


def _peak_heading(peaks: dict[str, Any] | None) -> list[str]:
    return [] if peaks is None else ["peak MB"]


def _peak(peaks: dict[str, Any] | None, label: str) -> list[str]:
    if peaks is None:
        return []
    if label not in peaks:
        return [""]
    found = [peaks[label][key] for key in ("device_bytes", "host_bytes") if peaks[label][key] is not None]
    return [f"{found[0] / 1e6:.0f}" if found else ""]


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
        "" if item.floor_share is None else f"{item.floor_share:.0%}",
    ]
