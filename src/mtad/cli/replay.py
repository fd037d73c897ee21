"""`mtad replay`: judge the steps of a trace again."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.parser import add_setting
from mtad.cli.tables import format_table
from mtad.config import RULE_OPTIONS, VERIFIER_NAMES, GenerationOptions, Setting, setting_fields
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.decoding.replay import Judge, Judgement, Replay
    from mtad.results.trace_reader import TraceReader

DESCRIPTION = """Judge the steps of a trace by other rules, thresholds and dials, on a CPU and
without any model. Dials that are not given are those of the recorded run, and
--threshold may be given several times. `mtad generate --trace FILE` writes
traces; they need pyarrow (pip install 'mtad[traces]')."""

EXAMPLES = """examples:
  mtad generate --prompts-file questions.jsonl --trace run.arrow
  mtad replay run.arrow --threshold 0.1 --threshold 0.5 --threshold 0.9
  mtad replay run.arrow --rule joint --rule typical --typical-epsilon 0.2
  mtad replay run.arrow --rule all --json

Every step is judged in the state that the recorded run had reached. `same` is the
share of steps decided as recorded. `on policy` counts the steps that the rule
itself would have reached: behind the first other decision of an answer its
own text would go on differently, so the rest of that answer is only an estimate.
"""

ALL_RULES = "all"
HEADINGS = ("rule", "tau", "tokens/call", "kept %", "perplexity", "same", "on policy")


def add_command(commands: Any) -> None:
    """Add the `replay` subcommand."""
    parser = commands.add_parser(
        "replay",
        help="judge a recorded run by other rules and thresholds",
        usage="%(prog)s FILE [--rule NAME ...] [--threshold X ...] [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a trace")
    parser.add_argument(
        "--rule",
        dest="rules",
        action="append",
        metavar="NAME",
        help=f"rule, or {ALL_RULES} that the trace can be judged by; may be given several times (default: as recorded)",
    )
    for item in _dials():
        add_setting(parser, item, may_repeat=item.name == "threshold")
    parser.add_argument("--json", action="store_true", help="one JSON document and nothing else on stdout")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    given = _read_dials(options)

    from tqdm import tqdm

    from mtad.decoding.replay import replay_trace
    from mtad.results.trace_reader import TraceReader

    trace = TraceReader(options.file)
    rules = options.rules or [trace.facts.verifier]
    _check_rules(rules, given)
    judges = _choose_judges(trace, rules, given)
    with tqdm(total=trace.num_bytes, unit="B", unit_scale=True, disable=None, leave=False, delay=1) as bar:
        found = replay_trace(trace, judges, lambda num_bytes: bar.update(num_bytes - bar.n) and None)
    if found.is_cut_off:
        print(
            f"mtad: the end of trace {options.file} is missing; its {found.num_steps} whole steps were used",
            file=sys.stderr,
        )
    _show(found, is_json=options.json)
    return 0


def _dials() -> list[Setting]:
    """The settings that rules read; None is what the run was recorded with."""
    names = {name for options in RULE_OPTIONS.values() for name in options}
    found = [item for item in setting_fields(GenerationOptions) if item.name in names]
    return [replace(item, default=None) for item in found]


def _read_dials(options: argparse.Namespace) -> dict[str, Any]:
    """The dials that were given, each within its bounds.

    Raises:
        ConfigError: One that is not.
    """
    given = {item.name: getattr(options, item.name) for item in _dials() if hasattr(options, item.name)}
    for item in _dials():
        for value in given.get(item.name, []) if item.name == "threshold" else [given.get(item.name)]:
            item.check(value)
    return given


def _check_rules(rules: list[str], given: dict[str, Any]) -> None:
    """Refuse unknown rules, and dials that none of the rules reads.

    Raises:
        ConfigError: The first of them.
    """
    for rule in rules:
        if rule not in (*VERIFIER_NAMES, ALL_RULES):
            raise ConfigError(f"rule must be one of {', '.join((*VERIFIER_NAMES, ALL_RULES))}, got {rule!r}")
    for name in given:
        readers = [rule for rule, names in RULE_OPTIONS.items() if name in names]
        if not {ALL_RULES, *readers} & set(rules):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is read by {' or '.join(readers)}, got rule {', '.join(rules)}; leave it out")


def _choose_judges(trace: "TraceReader", rules: list[str], given: dict[str, Any]) -> "list[Judge]":
    """One judge per rule and threshold; dials that were not given are those of the recorded run."""
    from mtad.decoding.replay import Judge, fitting_rules
    from mtad.verification import RuleSettings

    if ALL_RULES in rules:
        rules = fitting_rules(trace)
    names = {item.name for item in fields(RuleSettings)}
    recorded = {name: value for name, value in trace.facts.config.items() if name in names}
    dials = {name: value for name, value in given.items() if name in names}
    settings = RuleSettings(**(recorded | dials))
    thresholds = given.get("threshold", [None])
    return [
        Judge(rule=rule, threshold=threshold, settings=settings)
        for rule in rules
        for threshold in (thresholds if "threshold" in RULE_OPTIONS.get(rule, ()) else [None])
    ]


def _show(found: "Replay", *, is_json: bool) -> None:
    if is_json:
        from mtad.cli.output import to_json

        print(to_json(found.to_dict()))
        return
    recorded = found.recorded
    rows = [_cells(f"recorded: {recorded.rule}", recorded, found)]
    rows += [_cells(item.rule, item, found) for item in found.judgements]
    facts = found.facts
    models = facts.config.get("models", {})
    print(
        f"{found.num_steps} steps of {found.num_answers} answers, {facts.method} ({facts.drafter}, {facts.verifier}), "
        f"target {models.get('target', 'unknown')}, mtad {facts.mtad}"
    )
    print(format_table(HEADINGS, rows))
    print(_remarks(found))


def _cells(label: str, item: "Judgement", found: "Replay") -> list[str]:
    threshold = found.recorded.threshold if item.threshold is None else item.threshold
    has_threshold = threshold is not None and "threshold" in RULE_OPTIONS.get(item.rule, ())
    return [
        label,
        f"{threshold:g}" if has_threshold else "",
        f"{item.tokens_per_call:.3f}",
        "/".join(f"{100 * share:.0f}" for share in item.acceptance_by_depth),
        f"{item.perplexity:.3f}",
        f"{item.agreement:.1%}",
        f"{item.on_policy_steps} ({item.on_policy_share:.0%})",
    ]


def _remarks(found: "Replay") -> str:
    lines = [
        "Every step is judged in the state that the recorded run had reached; behind the first other decision of an",
        "answer (what is not `on policy`) the rule's own run would be in other states.",
    ]
    if found.partial_steps:
        lines.append(
            f"In {found.partial_steps} steps only the likeliest tokens are listed; what a rule makes of the others "
            "there is approximate."
        )
    return "\n".join(lines)
