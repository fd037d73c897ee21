"""`mtad calibrate`: the fastest settings that keep to a budget, as a profile."""

import argparse
import sys
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.energy import add_meter_flag
from mtad.cli.generate import load_engine
from mtad.cli.parser import add_common, add_settings, read_evaluation, read_settings
from mtad.cli.tables import format_table
from mtad.config import EvaluationOptions, GenerationOptions
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.api import Engine
    from mtad.energy import EnergyMeter
    from mtad.evaluation.budgets import Budget
    from mtad.evaluation.calibration import Choice, Search

DESCRIPTION = """Search method, threshold, depth and width for the fastest decoding that keeps to a
budget, and write them as a profile. Traces of a few items are judged at every
threshold first; the best few are run on half of the items, and the chosen one
is checked on the other half. Joules, where the budget is of energy, are measured in
windows of their own."""

EXAMPLES = """examples:
  mtad calibrate --data ./data --tasks wikitext --limit 40 --budget "perplexity<=sampling"
  mtad calibrate --data ./data --tasks gsm8k --budget "score within 1%" --profile-out fast.toml
  mtad calibrate --data ./data --tasks wikitext --drafts ./nano ./small ./base
  mtad calibrate --data ./data --tasks mt_bench --budget "energy<=80% of sampling"
  mtad generate --profile profile.toml "Explain why the sky is blue."

Budgets: "perplexity<=sampling", "score within N%", "energy<=sampling",
"energy<=N% of sampling", "joules<=N" (joules a token), "lossless", "max speed".
"""
HEADINGS = ("items", "task", "perplexity change", "score change", "speed", "budget")
JOULE_HEADINGS = ("J/token", "of sampling's")
JOULE_FIGURES = (("joules_per_token", "per_token"), ("joules_ratio", "ratio"))


def add_command(commands: Any) -> None:
    """Add the `calibrate` subcommand."""
    parser = commands.add_parser(
        "calibrate",
        help="find the fastest settings under a budget",
        usage="%(prog)s --data DIR --tasks NAME --budget TEXT [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks, with commas or spaces between")
    parser.add_argument("--budget", metavar="TEXT", default="perplexity<=sampling", help="what must hold, see below")
    parser.add_argument("--out", type=Path, default=Path("calibration"), metavar="DIR", help="folder of the runs")
    parser.add_argument(
        "--profile-out", type=Path, default=Path("profile.toml"), metavar="FILE", help="where the profile goes"
    )
    parser.add_argument(
        "--drafts", nargs="+", metavar="MODEL", default=[], help="choose among these drafts as well (default: --draft)"
    )
    add_meter_flag(parser)
    add_settings(parser, EvaluationOptions, "evaluation")
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    generation = generation.for_measurement()
    if options.data is None or not options.tasks:
        raise ConfigError("calibrate needs --data DIR and --tasks NAME")
    if "batch_size" not in options:
        # Profiles are for single prompts unless something else is asked for.
        options.batch_size = 1
    evaluation = read_evaluation(options)

    from mtad.bench.energy import synchronizer
    from mtad.evaluation.budgets import parse_budget
    from mtad.evaluation.calibration import Search, calibrate
    from mtad.evaluation.plan import EvaluationPlan, load_tasks

    budget = parse_budget(options.budget)
    names = [name for word in options.tasks for name in word.split(",") if name]
    plan = EvaluationPlan(
        tasks=load_tasks(names, options.data, evaluation),
        entrants=(),
        options=evaluation,
        first_seed=generation.seed or 0,
        system=options.system,
        max_new_tokens=generation.max_new_tokens if "max_new_tokens" in options else None,
    )

    meter = _open_meter(options.meter, budget)

    @lru_cache(maxsize=1)
    def load(draft: str | None) -> "Engine":
        named = models if draft is None else replace(models, draft=draft)
        engine = load_engine(named, GenerationOptions(), color=options.color)
        if meter is not None:
            meter.synchronize = synchronizer(engine)
        return engine

    search = Search(
        load=load,
        drafts=list(dict.fromkeys(options.drafts)) or [None],
        plan=plan,
        base=generation,
        budget=budget,
        folder=options.out,
        note=_note,
        meter=meter,
    )
    try:
        choice = calibrate(search)
    finally:
        if meter is not None:
            meter.close()
    _write(options, choice, search, {group.task.name: len(group.items) for group in plan.tasks})
    print(f"{choice.entrant.label} -> {options.profile_out}")
    print(format_table((*HEADINGS, *(JOULE_HEADINGS if budget.needs_meter else ())), _lines(choice)))
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _open_meter(name: str, budget: "Budget") -> "EnergyMeter | None":
    """The meter that a budget of energy needs, which says what it counts; None for other budgets."""
    if not budget.needs_meter:
        return None
    from mtad.energy import open_meter

    meter = open_meter(name)
    if meter.scopes:
        _note(meter.describe())
    return meter


def _lines(choice: "Choice") -> list[list[str]]:
    parts = (("chosen on", choice.rows, choice.verdict), ("checked on", choice.unseen, choice.unseen_verdict))
    return [
        [
            f"{name} {row['num_items']}",
            row["task"],
            _shown(row["decoding"]["perplexity_change"], "+.1%"),
            _shown(row["score_change"], "+.3f"),
            _shown(row["decoding"]["speed_ratio"], ".2f"),
            "kept" if verdict.is_confirmed else "kept by the mean" if verdict.holds else "not kept",
            *_joule_cells(row),
        ]
        for name, rows, verdict in parts
        for row in rows
    ]


def _joule_cells(row: dict[str, Any]) -> list[str]:
    from mtad.results.energy import joule_format

    if (joules := row.get("joules")) is None:
        return []
    return [_shown(joules["per_token"], joule_format(joules["per_token"]["value"])), _shown(joules["ratio"], ".2f")]


def _shown(estimate: dict[str, float] | None, spec: str) -> str:
    if estimate is None:
        return ""
    return f"{estimate['value']:{spec}} [{estimate['low']:{spec}}, {estimate['high']:{spec}}]"


def _write(options: argparse.Namespace, choice: "Choice", search: "Search", tasks: dict[str, int]) -> None:
    from mtad.results.files import write_json
    from mtad.results.profile import write_profile
    from mtad.results.provenance import describe_run

    run_facts = describe_run()
    chosen, plain = choice.entrant.contender.options, GenerationOptions()
    names = ("method", "drafter", "verifier", "gamma", "beam_width", "threshold")
    settings = {name: getattr(chosen, name) for name in names}
    others = {name: value for name, value in asdict(chosen).items() if name not in settings}
    if choice.entrant.draft is not None:
        settings["draft"] = choice.entrant.draft
    ours = ("seed", "guard", "compile")
    settings |= {name: value for name, value in others.items() if value != getattr(plain, name) and name not in ours}
    measured = {
        "budget": search.budget.text,
        "is_confirmed": choice.verdict.is_confirmed,
        "holds_on_unseen": choice.unseen_verdict.holds,
        "is_confirmed_on_unseen": choice.unseen_verdict.is_confirmed,
        "items": [f"{name}: {count}" for name, count in tasks.items()],
        "target": choice.models["target"],
        "draft": choice.models["draft"],
        "adapter": choice.models["adapter"],
        "batch_size": options.batch_size,
        "dtype": choice.models["dtype"],
        "quantization": choice.models["quantization"],
        "processor": run_facts["machine"]["processor"],
        "command": run_facts["command"],
        "commit": run_facts["commit"],
    }
    for row in choice.unseen:
        decoding = row["decoding"]
        measured |= {
            f"{row['task']}_{name}": None if estimate is None else estimate["value"]
            for name, estimate in (
                ("perplexity_change", decoding["perplexity_change"]),
                ("speed_ratio", decoding["speed_ratio"]),
                ("score_change", row["score_change"]),
            )
        }
        if "joules" in row:
            measured |= {f"{row['task']}_{name}": row["joules"][key]["value"] for name, key in JOULE_FIGURES}
    if search.meter is not None:
        measured["meter"] = search.meter.describe()
    write_profile(options.profile_out, settings, measured)
    guesses = [asdict(guess) for guess in choice.guesses]
    record = {"kind": "calibrate", "schema": 1, "run": run_facts, "settings": settings, "measured": measured}
    write_json(options.out / "calibration.json", record | {"guesses": guesses})
