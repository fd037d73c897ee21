"""`mtad doctor`: is this draft any good for this target, here?"""

import argparse
from typing import Any

from mtad.cli.distill import MODEL_FLAGS, Bars, add_prompts, read_all
from mtad.cli.parser import add_setting
from mtad.cli.tables import format_table
from mtad.cli.terminal import note
from mtad.config import ModelOptions, replace_settings, setting_fields
from mtad.errors import ConfigError

DESCRIPTION = """Examine a target and a draft on this machine: do their tokenizers fit, what does a
call of each cost, how near are their distributions, how fast is every method."""

EXAMPLES = """examples:
  mtad doctor --target FOLDER --draft FOLDER
  mtad doctor --quick
  mtad doctor --quick --quantization int8
  mtad doctor --target FOLDER --draft FOLDER --json

overlap      mean of sum(min(p, q)) on text of the target, temperature 1, unfiltered
kept         share of calls that kept 1, 2, ... drafted tokens, in percent
predicted    tokens of a call by its cost: from the overlap for speculative
             sampling, from the tokens per call for joint rules; without overhead
measured     tokens/s against the target alone, in turns, the median (range)
"""
_FLAGS = (*MODEL_FLAGS, "draft", "quantization", "threads")
HEADINGS = ("method", "tokens/call", "kept %", "predicted", "measured", "(range)")


def add_command(commands: Any) -> None:
    """Add the `doctor` subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="examine a target and a draft",
        usage="%(prog)s --target MODEL --draft MODEL [--quick] [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter texts, for a first look")
    add_prompts(parser, "prompts that the target answers for it (default: some of its own)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON document on stdout")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colour of notices")
    group = parser.add_argument_group("models")
    for item in setting_fields(ModelOptions):
        if item.name in _FLAGS:
            add_setting(group, item)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    given = vars(options)
    chosen = {name: given[name] for name in _FLAGS if name in given}
    models = replace_settings(ModelOptions(), chosen, "flags")
    prompts = read_all(options.prompts)
    note(f"loading {models.target} ...", options.color)

    from mtad.distill.diagnosis import QUICK, Effort, examine
    from mtad.models.pairs import KNOWN_PAIRS

    if models.draft is None and models.target not in KNOWN_PAIRS:
        raise ConfigError(
            "doctor needs a draft to examine, got none; name one with --draft, or train one: mtad distill"
        )
    with Bars() as bars:
        report = examine(models, prompts, QUICK if options.quick else Effort(), bars.note)
    if options.json:
        from mtad.cli.output import to_json

        print(to_json(report))
    else:
        _show(report)
    return 0


def _show(report: dict[str, Any]) -> None:
    print(f"tokenizers  {report['tokenizers']['words']}")
    if "costs" in report:
        costs, overlap = report["costs"], report["overlap"]
        print(
            f"cost        a draft call is {costs['draft']:.2f} of a target call ({costs['target_ms']:.1f} ms); "
            f"5 tokens at once cost the target {costs['verify'][4]:.2f}, 17 tokens {costs['verify'][16]:.2f}"
        )
        print(f"overlap     {overlap['value']:.3f} on {overlap['places']:,} places")
        print(format_table(HEADINGS, [_cells(item) for item in report["methods"]]))
    verdict = report["verdict"]
    words = {"use": "use it", "train": "train one", "do not use": "do not use it"}[verdict["verdict"]]
    print(f"verdict     {words}: {verdict['reason']}")
    if verdict["command"]:
        print(f"next        {verdict['command']}")


def _cells(item: dict[str, Any]) -> list[str]:
    speed = item["speedup"]
    return [
        item["method"],
        f"{item['tokens_per_call']:.2f}",
        "/".join(f"{100 * share:.0f}" for share in item["acceptance_by_depth"]),
        f"{item['predicted_speedup']:.2f}x",
        f"{speed['median']:.2f}x",
        f"({speed['low']:.2f} to {speed['high']:.2f})",
    ]
