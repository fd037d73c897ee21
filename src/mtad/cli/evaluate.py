"""`mtad evaluate`: contenders on tasks, with scores, intervals and tests."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.generate import load_engine
from mtad.cli.parser import add_common, add_settings, read_evaluation, read_settings
from mtad.cli.tables import format_table
from mtad.config import EvaluationOptions, GenerationOptions, ModelOptions
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.api import Engine
    from mtad.evaluation.plan import Entrant, EvaluationPlan

DESCRIPTION = """Answer the items of tasks with several contenders, paired over items and seeds, and
score the answers. Everything is kept in a folder; a killed run that is started
again with the same words goes on where it was."""

EXAMPLES = """examples:
  mtad evaluate --data ./data --tasks gsm8k,xsum --limit 50 --out runs/first
  mtad evaluate --data ./data --tasks spider --adapter ./lora --draft ./draft \\
      --rules autoregressive autoregressive:temperature=0 beam_sampling speculative mtad mmtad
  mtad evaluate --data ./data --tasks wikitext --rules autoregressive mmtad --thresholds 0.1 0.5 0.9
  mtad evaluate --data ./data --tasks humaneval --num-seeds 5 --allow-code-execution
  mtad evaluate --data ./data --tasks wikitext --rules mmtad --drafts ./nano ./small ./base
  mtad evaluate --lm-eval hellaswag gsm8k --rules autoregressive mmtad --limit 100

Tasks: spider, humaneval, mbpp, gsm8k, xsum, cnn_dm, mt_bench, spec_bench, wikitext.
Contenders are spelled as for `mtad compare`; differences and speed ratios are
against `autoregressive`, single-token sampling, where it is among them.

score    mean over items with its 95% interval; change and p are paired over items
ppl      perplexity of the answers under the target, token-weighted
"""
DEFAULT_RULES = ("autoregressive", "speculative", "mtad", "mmtad")
HEADINGS = (
    *("task", "contender", "items", "score", "change", "p", "ppl", "ppl change"),
    *("tok/call", "tokens", "cut", "tok/s", "speed"),
)


def add_command(commands: Any) -> None:
    """Add the `evaluate` subcommand."""
    parser = commands.add_parser(
        "evaluate",
        help="score contenders on tasks",
        usage="%(prog)s --data DIR --tasks NAME[,NAME] [--rules NAME ...] --out DIR [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks, with commas or spaces between")
    add_contender_flags(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: evaluation)")
    parser.add_argument(
        "--lm-eval", nargs="+", metavar="TASK", help="run these tasks of lm-evaluation-harness instead of --tasks"
    )
    parser.add_argument("--lm-eval-path", type=Path, metavar="DIR", help="folder of further task files of the harness")
    parser.add_argument("--json", action="store_true", help="the record as one JSON document on stdout")
    add_settings(parser, EvaluationOptions, "evaluation")
    add_common(parser)
    parser.set_defaults(run=run, parser=parser, out=Path("evaluation"))


def add_contender_flags(parser: argparse.ArgumentParser) -> None:
    """`--rules`, `--thresholds` and `--drafts`."""
    parser.add_argument(
        "--rules",
        "--methods",
        nargs="+",
        dest="rules",
        metavar="NAME",
        default=list(DEFAULT_RULES),
        help=f"contenders (default: {' '.join(DEFAULT_RULES)})",
    )
    parser.add_argument(
        "--thresholds", nargs="+", type=float, metavar="X", default=[], help="run rules that read it with each of these"
    )
    parser.add_argument(
        "--drafts", nargs="+", metavar="MODEL", default=[], help="run contenders that need a draft with each of these"
    )


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    generation = generation.for_measurement()
    if options.lm_eval:
        from mtad.cli.harness import run_harness_tasks

        return run_harness_tasks(options, models, generation)
    if options.data is None or not options.tasks:
        raise ConfigError("evaluate needs --data DIR and --tasks NAME; mtad evaluate --help lists the tasks")
    plan = build_plan(options, generation, [name for word in options.tasks for name in word.split(",") if name])
    record, status = execute(plan, models, options)
    if record is not None:
        show(record, as_json=options.json)
    return status


def build_plan(options: argparse.Namespace, generation: GenerationOptions, tasks: Sequence[str]) -> "EvaluationPlan":
    """What the flags ask for.

    Raises:
        ConfigError: Unknown names, or settings that do not fit.
        DataError: Data is missing or broken.
    """
    named = [name for name in ("method", "drafter", "verifier") if name in vars(options)]
    if named:
        raise ConfigError(f"evaluate takes no --{named[0]}; name a contender instead: --rules joint@beam mmtad block")
    evaluation = read_evaluation(options)

    from mtad.api.contenders import parse_contenders, spread_thresholds
    from mtad.evaluation.plan import EvaluationPlan, load_tasks

    contenders = spread_thresholds(parse_contenders(options.rules, generation), options.thresholds)
    return EvaluationPlan(
        tasks=load_tasks(tasks, options.data, evaluation),
        entrants=_entrants(contenders, options.drafts),
        options=evaluation,
        first_seed=generation.seed or 0,
        system=options.system,
        max_new_tokens=generation.max_new_tokens if "max_new_tokens" in options else None,
    )


def execute(
    plan: "EvaluationPlan", models: ModelOptions, options: argparse.Namespace
) -> tuple[dict[str, Any] | None, int]:
    """Run a plan with a progress bar; returns the record, None after an interrupt, and the exit status."""
    from tqdm import tqdm

    from mtad.decoding import needs_draft_model
    from mtad.evaluation.running import run_evaluation

    def load(draft: str | None) -> "Engine":
        own = [one.contender.options for one in plan.entrants if one.draft == draft]
        demanding = next((item for item in own if needs_draft_model(item)), own[0])
        return load_engine(models if draft is None else replace(models, draft=draft), demanding, color=options.color)

    with tqdm(total=plan.num_batches(), unit="batch", disable=None, leave=False) as bar:

        def note(label: str) -> None:
            bar.set_postfix_str(label, refresh=False)
            bar.update()

        try:
            return run_evaluation(load, plan, options.out, note), 0
        except KeyboardInterrupt:
            print(f"[interrupted; the same command goes on from {options.out}]", file=sys.stderr)
            return None, 130


def show(record: dict[str, Any], *, as_json: bool) -> None:
    """Print the table of a record, or the record."""
    if as_json:
        from mtad.cli.output import to_json

        print(to_json(record))
        return
    print(format_table(HEADINGS, [cells(row) for row in record["rows"]]))


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table, from a row as JSON has it."""
    decoding = row["decoding"]
    return [
        row["task"],
        row["contender"],
        str(row["num_items"]) + (f"x{row['num_seeds']}" if row["num_seeds"] > 1 else ""),
        _interval(row["score"], ".3f"),
        _interval(row["score_change"], "+.3f"),
        "" if row["p_value"] is None else f"{row['p_value']:.2g}",
        _interval(decoding["perplexity"], ".3f"),
        "" if decoding["perplexity_change"] is None else f"{decoding['perplexity_change']['value']:+.1%}",
        f"{decoding['tokens_per_call']['value']:.2f}",
        f"{decoding['tokens_per_answer']:.0f}",
        f"{decoding['cut_share']:.0%}",
        f"{decoding['tokens_per_s']:.1f}",
        "" if decoding["speed_ratio"] is None else f"{decoding['speed_ratio']['value']:.2f}x",
    ]


def _interval(estimate: dict[str, float] | None, spec: str) -> str:
    if estimate is None:
        return ""
    return f"{estimate['value']:{spec}} [{estimate['low']:{spec}}, {estimate['high']:{spec}}]"


def _entrants(contenders: "Sequence[Any]", drafts: Sequence[str]) -> "list[Entrant]":
    """Each contender that needs a draft model with each of the drafts, the others once."""
    from mtad.decoding import needs_draft_model
    from mtad.evaluation.plan import Entrant

    if not drafts:
        return [Entrant(label=item.label, contender=item) for item in contenders]
    names = {draft: Path(draft).name for draft in dict.fromkeys(drafts)}
    if len(set(names.values())) < len(names):
        raise ConfigError(f"drafts must have different names, got {' and '.join(names)}; rename a folder")
    entrants = []
    for place, (draft, name) in enumerate(names.items()):
        for item in contenders:
            if needs_draft_model(item.options):
                entrants.append(Entrant(label=f"{item.label} ({name})", contender=item, draft=draft))
            elif place == 0:
                entrants.append(Entrant(label=item.label, contender=item, draft=draft))
    return entrants
