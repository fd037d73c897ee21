"""`mtad experiment`: the questions of the paper, one command each."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.energy import add_meter_flag, measure_energy
from mtad.cli.evaluate import add_contender_flags, build_plan, execute, show
from mtad.cli.generate import load_engine
from mtad.cli.parser import add_common, add_settings, read_settings
from mtad.cli.tables import format_table
from mtad.config import EvaluationOptions, GenerationOptions, ModelOptions, replace_settings
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.evaluation.presets import Preset

DESCRIPTION = """Answer one of the paper's questions with a record and a table. Each experiment has
tasks, contenders and settings of its own; flags go over them."""

EXAMPLES = """experiments:
  quality         every method against single-token sampling on five tasks
  threshold       the dial against speed, likelihood, score, length, diversity
  auxiliary-size  drafts of several sizes (--drafts), depths, widths; early exit
  approximation   blocks against the exact optimum: the share of its likelihood
  overhead        time and memory as context and batch grow
  energy          joules per token under patterns of requests (needs no --data)

examples:
  mtad experiment quality --data ./data --limit 40 --out runs/quality
  mtad experiment threshold --data ./data --tasks gsm8k --limit 40 --out runs/dial
  mtad experiment auxiliary-size --data ./data --drafts ./nano ./small ./base
  mtad experiment approximation --data ./data --limit 50
  mtad experiment overhead --data ./data --rules speculative mtad mmtad
  mtad experiment energy --out runs/energy

Those but overhead and energy are evaluations. A killed one goes on, and so does
energy; `mtad report` reads their folders. See `mtad evaluate --help` and
`mtad energy --help` for the columns.
"""
OVERHEAD = "overhead"
ENERGY = "energy"
ENERGY_QUESTION = "joules per token under patterns of requests, every method against speculative sampling"
ENERGY_RULES = ("autoregressive", "speculative", "mtad", "mmtad")
ENERGY_GRID: dict[str, Any] = {
    "patterns": ["steady", "bursty", "idle"],
    "batch_sizes": [1, 8, 32],
    "prompt_tokens": [0, 512],
    "new_tokens": [32, 128],
    "repeats": 3,
    "window": 5.0,
}
JOINT = ("mtad", "mmtad")
SHARE_HEADINGS = (
    *("block of", "blocks", "share of optimum", "geometric", "smallest", "optimal"),
    *("smallest P/Q", "promised"),
)
OVERHEAD_HEADINGS = (
    "contender",
    "context",
    "batch",
    "draft ms",
    "verify ms",
    "other ms",
    "prefill ms",
    "tok/s",
    "cache MB",
)


def add_command(commands: Any) -> None:
    """Add the `experiment` subcommand."""
    parser = commands.add_parser(
        "experiment",
        help="answer one of the paper's questions",
        usage="%(prog)s NAME --data DIR [--out DIR] [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("name", metavar="NAME", help="experiment, see below")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks instead of the experiment's own")
    add_contender_flags(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: the experiment's name)")
    parser.add_argument("--json", action="store_true", help="the record as one JSON document on stdout")
    add_meter_flag(parser)
    add_settings(parser, EvaluationOptions, "evaluation")
    add_common(parser)
    parser.set_defaults(run=run, parser=parser, rules=None)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    from mtad.evaluation.presets import PRESETS

    known = (*PRESETS, OVERHEAD, ENERGY)
    if options.name not in known:
        raise ConfigError(f"unknown experiment {options.name!r}; known are {', '.join(known)}")
    if options.data is None and options.name != ENERGY:
        raise ConfigError("experiment needs --data DIR, the folder of the data sets")
    options.out = options.out or Path(options.name)
    models, generation = read_settings(options)
    generation = generation.for_measurement()
    if options.name == ENERGY:
        return _run_energy(options, models, generation)
    if options.name == OVERHEAD:
        return _run_overhead(options, models, generation)
    return _run_preset(PRESETS[options.name], options, models, generation)


def _run_preset(
    preset: "Preset", options: argparse.Namespace, models: ModelOptions, generation: GenerationOptions
) -> int:
    if preset.needs_drafts and not options.drafts:
        raise ConfigError(f"{options.name} compares drafts; name several with --drafts")
    given = {name: value for name, value in preset.decoding.items() if name not in options}
    generation = replace_settings(generation, given, options.name)
    options.rules = options.rules or list(preset.rules)
    options.thresholds = options.thresholds or list(preset.thresholds)
    if "num_seeds" not in options:
        options.num_seeds = preset.num_seeds
    if "max_new_tokens" in preset.decoding:
        options.max_new_tokens = generation.max_new_tokens
    words: Sequence[str] = options.tasks or preset.tasks
    tasks = [name for word in words for name in word.split(",") if name]
    record, status = execute(build_plan(options, generation, tasks), models, options)
    if record is None:
        return status
    record |= {"experiment": options.name, "question": preset.question}
    if options.name == "approximation":
        record |= _approximation(options, preset.baseline)
    _write(options, record)
    show(record, as_json=options.json)
    if "shares" in record and not options.json:
        print(format_table(SHARE_HEADINGS, _shares(record)))
    return status


def _approximation(options: argparse.Namespace, optimum: str) -> dict[str, Any]:
    from mtad.results.approximation import shares_of_optimum
    from mtad.results.item_log import read_entries

    return {"shares": shares_of_optimum(read_entries(options.out / "items.jsonl"), optimum)}


def _shares(record: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["contender"],
            str(row["num_blocks"]),
            f"{row['share']['value']:.3f} [{row['share']['low']:.3f}, {row['share']['high']:.3f}]",
            f"{row['geometric_share']:.3f}",
            f"{row['smallest_share']:.2g}",
            f"{row['is_optimal']:.0%}",
            "" if row["smallest_ratio"] is None else f"{row['smallest_ratio']:.3g}",
            _promise(record["contenders"][row["contender"]]),
        ]
        for row in record["shares"]
    ]


def _promise(contender: dict[str, Any]) -> str:
    """What the ratio of kept drafts is promised to exceed: the threshold of the rule `joint`, nothing elsewhere."""
    settings = contender["settings"]
    is_joint = settings["verifier"] == "joint" or (settings["verifier"] is None and settings["method"] in JOINT)
    return f"> {settings['threshold']:g}" if is_joint else ""


def _run_overhead(options: argparse.Namespace, models: ModelOptions, generation: GenerationOptions) -> int:
    from tqdm import tqdm

    from mtad.api.contenders import parse_contenders
    from mtad.decoding import needs_draft_model
    from mtad.evaluation.overhead import OverheadPlan, measure_overhead
    from mtad.results.overhead import summarize_overhead
    from mtad.results.provenance import describe_run

    words = options.rules or ["autoregressive", "speculative", "mtad", "mmtad"]
    contenders = parse_contenders(words, generation)
    demanding = next((item.options for item in contenders if needs_draft_model(item.options)), contenders[0].options)
    engine = load_engine(models, demanding, color=options.color)
    plan = OverheadPlan()
    with tqdm(total=sum(1 for _ in plan.places()) * len(contenders), disable=None, leave=False) as bar:
        samples = measure_overhead(engine, contenders, options.data, plan, lambda label: bar.update() and None)
    record: dict[str, Any] = {"kind": "overhead", "schema": 1, "run": describe_run(), "samples": samples}
    record["rows"] = summarize_overhead(samples)
    _write(options, record)
    if options.json:
        from mtad.cli.output import to_json

        print(to_json(record))
        return 0
    print(format_table(OVERHEAD_HEADINGS, [_overhead_cells(row) for row in record["rows"]]))
    return 0


def _overhead_cells(row: dict[str, Any]) -> list[str]:
    times = [f"{row[name]:.1f}" for name in ("draft_ms", "verify_ms", "other_ms", "prefill_ms", "tokens_per_s")]
    return [row["contender"], str(row["context"]), str(row["batch_size"]), *times, f"{row['cache_bytes'] / 1e6:.1f}"]


def _run_energy(options: argparse.Namespace, models: ModelOptions, generation: GenerationOptions) -> int:
    """`mtad energy` over the experiment's own grid; --max-new-tokens goes over its lengths of answers."""
    grid = ENERGY_GRID | ({"new_tokens": [options.max_new_tokens]} if "max_new_tokens" in options else {})
    given = {name: value for name, value in vars(options).items() if name != "max_new_tokens"}
    given |= grid | {"rules": options.rules or list(ENERGY_RULES), "record": options.out / "run.json"}
    return measure_energy(argparse.Namespace(**given), models, generation, experiment=ENERGY, question=ENERGY_QUESTION)


def _write(options: argparse.Namespace, record: dict[str, Any]) -> None:
    from mtad.results.files import write_json

    write_json(options.out / "run.json", record)
