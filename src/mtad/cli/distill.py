"""`mtad distill`: train a draft for a target."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtad.cli.parser import add_setting, add_settings
from mtad.cli.prompt_files import read_prompts
from mtad.cli.tables import format_table
from mtad.cli.terminal import note
from mtad.config import DistillOptions, ModelOptions, replace_settings, setting_fields
from mtad.errors import ConfigError

DESCRIPTION = """Train a draft for a target: sample text from the target, train the draft on the
target's whole distribution, measure it, and write a Hugging Face folder."""

EXAMPLES = """examples:
  mtad distill --target FOLDER --out draft --time-budget 8m
  mtad distill --target FOLDER --out drafts --size nano --size small --prompts q.jsonl
  mtad distill --target FOLDER --adapter LORA --out draft --init OLD_DRAFT --tokens 500000
  mtad distill --target FOLDER --out draft --size auto

A killed run goes on where it was when the same command is given again; unfinished
work lies in OUT/.work, which may be deleted afterwards. Prompts are written by the
target itself where no file is given.
"""

MODEL_FLAGS = ("target", "adapter", "device", "dtype", "revision")


def add_command(commands: Any) -> None:
    """Add the `distill` subcommand."""
    parser = commands.add_parser(
        "distill",
        help="train a draft for a target",
        usage="%(prog)s --target MODEL --out FOLDER [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the draft goes")
    add_prompts(parser, "prompts to answer")
    parser.add_argument("--json", action="store_true", help="the report as one JSON document on stdout")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colour of notices")
    models = parser.add_argument_group("target")
    for item in setting_fields(ModelOptions):
        if item.name in MODEL_FLAGS:
            add_setting(models, item)
    add_settings(parser, DistillOptions, "draft")
    parser.set_defaults(run=run, parser=parser)


def add_prompts(parser: argparse.ArgumentParser, what: str) -> None:
    """The `--prompts` flag."""
    parser.add_argument(
        "--prompts",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help=f"{what}: one per line of text, or .jsonl",
    )


def read_all(paths: Sequence[Path]) -> list[Any]:
    """The prompts of several files.

    Raises:
        PromptError: A file cannot be used; the line is named.
    """
    return [prompt for path in paths for prompt in read_prompts(path)]


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    given = vars(options)
    if options.out is None:
        raise ConfigError("distill needs a folder for the draft, got none; name one with --out")
    models = replace_settings(ModelOptions(), {name: given[name] for name in MODEL_FLAGS if name in given}, "flags")
    names = [item.name for item in setting_fields(DistillOptions)]
    settings = replace_settings(DistillOptions(), {name: given[name] for name in names if name in given}, "flags")
    prompts = read_all(options.prompts)
    note(f"loading {models.target} ...", options.color)

    from mtad.distill.pipeline import Distillation
    from mtad.distill.team import find_team

    team = find_team()
    with Bars() as bars:
        report = Distillation(models, settings, prompts, options.out, bars.note, team).run()
    if team.leads:
        _show(report, is_json=options.json)
    return 0


class Bars:
    """One progress bar per stage, with the time that is left; on a terminal only."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def note(self, stage: str, done: float, words: str) -> None:
        """Show how much of a stage is done, 0 to 1."""
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} < {remaining} {postfix}"
            self._bar = tqdm(total=1.0, desc=stage, disable=None, bar_format=form, file=sys.stderr)
            self._stage = stage
        if words:
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(min(done, 1.0) - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _show(report: dict[str, Any], *, is_json: bool) -> None:
    if is_json:
        from mtad.cli.output import to_json

        print(to_json(report))
        return
    labels = list(next(iter(report["drafts"].values()))["after"])
    rows = [
        [f"{name} {stage}", *(f"{figures[stage][label]:.3f}" for label in labels)]
        for name, figures in report["drafts"].items()
        for stage in ("before", "after")
    ]
    print(format_table(["draft", *labels], rows))
    for name, figures in report["drafts"].items():
        print(f"{name}: {figures['parameters'] / 1e6:.1f}M parameters in {figures['folder']}")
    sampling, training = (report["rates"][f"{stage}_tokens_per_s"] for stage in ("sampling", "training"))
    print(f"sampling: {sampling:,.0f} tokens/s; training: {training:,.0f} tokens/s")
