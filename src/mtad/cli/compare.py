"""`mtad compare`: rules and methods side by side on one prompt set."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.generate import BATCH_SIZE, load_engine
from mtad.cli.parser import add_common, add_setting, add_template_choice, read_settings
from mtad.cli.prompt_files import read_prompts
from mtad.cli.tables import format_table
from mtad.config import GenerationOptions, Setting
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.api import Engine
    from mtad.api.contenders import Contender
    from mtad.bench.compare import Workload
    from mtad.results.comparison import MethodSummary

DESCRIPTION = """Decode one prompt set with many rules, on the same models, seeds and engine, and
show what each costs and gives. Contenders take turns batch by batch."""

EXAMPLES = """examples:
  mtad compare --prompts-file questions.jsonl
  mtad compare --prompts-file questions.jsonl --num-prompts 40 --record compare.json
  mtad compare --rules autoregressive mmtad mmtad:threshold=0.9 --prompts-file q.txt
  mtad compare --rules block traversal joint@beam:gamma=6 --prompts-file q.txt --json

A contender is a rule (block), a rule with a drafter (joint@beam), or a method
(mmtad, speculative); settings of its own follow a colon. `all` is single-token
sampling, every rule, and beams. Flags such as --gamma hold for all of them.

tokens/call   emitted tokens by calls of the target (95% interval in the record)
kept          share of calls that kept 1, 2, ... drafted tokens, in percent
perplexity    of the answers under the target; the change is against sampling
speed         tokens/s against sampling on the same batches, the median
refused       drafted tokens kept that a lossless rule would have refused

A killed run goes on where it was when it is given the same --record.
"""

NUM_PROMPTS = Setting(
    name="num_prompts", help="evenly spaced prompts, as many from each file; all when left out", type=int, minimum=1
)
MAX_PROMPT_CHARACTERS = Setting(
    name="max_prompt_characters", help="leave longer prompts out, before any are chosen", type=int, minimum=1
)
NUM_SEEDS = Setting(name="num_seeds", help="seeds, counted up from --seed", type=int, default=1, minimum=1)
HEADINGS = (
    "contender",
    "exact",
    "tokens/call",
    "kept %",
    "perplexity",
    "change",
    "refused",
    "tokens",
    "cut",
    "tokens/s",
    "speed",
)


def add_command(commands: Any) -> None:
    """Add the `compare` subcommand."""
    parser = commands.add_parser(
        "compare",
        help="run rules and methods side by side on a prompt set",
        usage="%(prog)s --prompts-file FILE [--rules NAME ...] [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--rules", nargs="+", metavar="NAME", default=["all"], help="contenders, see below (default: all)"
    )
    parser.add_argument(
        "--prompts-file",
        type=Path,
        action="append",
        metavar="FILE",
        help="one prompt per line: text, or .jsonl; may be given several times",
    )
    add_setting(parser, NUM_PROMPTS)
    add_setting(parser, MAX_PROMPT_CHARACTERS)
    add_setting(parser, NUM_SEEDS)
    add_setting(parser, BATCH_SIZE)
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON file to write, or to go on with")
    parser.add_argument("--json", action="store_true", help="the table as one JSON document on stdout, nothing else")
    add_template_choice(parser)
    add_common(parser)
    parser.set_defaults(
        run=run,
        parser=parser,
        batch_size=BATCH_SIZE.default,
        num_prompts=NUM_PROMPTS.default,
        max_prompt_characters=MAX_PROMPT_CHARACTERS.default,
        num_seeds=NUM_SEEDS.default,
    )


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    generation = generation.for_measurement()
    for item in (NUM_PROMPTS, MAX_PROMPT_CHARACTERS, NUM_SEEDS, BATCH_SIZE):
        item.check(getattr(options, item.name))
    named = [name for name in ("method", "drafter", "verifier") if name in vars(options)]
    if named:
        raise ConfigError(f"compare takes no --{named[0]}; name a contender instead: --rules joint@beam mmtad block")
    prompts = _collect_prompts(options)

    from mtad.api import PromptFormat
    from mtad.api.contenders import parse_contenders
    from mtad.bench.compare import Workload

    contenders = parse_contenders(options.rules, generation)
    engine = load_engine(models, _most_demanding(contenders), color=options.color)
    workload = Workload(
        prompts=prompts,
        style=PromptFormat(is_chat=options.is_chat, system=options.system),
        seeds=range(generation.seed or 0, (generation.seed or 0) + options.num_seeds),
        batch_size=options.batch_size,
    )
    return _compare(engine, contenders, workload, options)


def _most_demanding(contenders: "list[Contender]") -> GenerationOptions:
    """The options of a contender that needs a draft model, where there is one."""
    from mtad.decoding import needs_draft_model

    return next((item.options for item in contenders if needs_draft_model(item.options)), contenders[0].options)


def _collect_prompts(options: argparse.Namespace) -> list[Any]:
    if not options.prompts_file:
        raise ConfigError("got no prompts; name a file with --prompts-file")
    limit = options.max_prompt_characters
    files = [[prompt for prompt in read_prompts(path) if _fits(prompt, limit)] for path in options.prompts_file]
    if not any(files):
        raise ConfigError(f"every prompt is longer than {limit} characters; raise --max-prompt-characters")
    if options.num_prompts is None:
        return [prompt for prompts in files for prompt in prompts]
    chosen = []
    for index, prompts in enumerate(files):
        share = options.num_prompts // len(files) + (index < options.num_prompts % len(files))
        if share > len(prompts):
            raise ConfigError(
                f"num_prompts wants {share} prompts of {options.prompts_file[index]}, which holds {len(prompts)}; "
                "lower it"
            )
        chosen += [prompts[place * len(prompts) // share] for place in range(share)]
    return chosen


def _fits(prompt: Any, limit: int | None) -> bool:
    """Whether a prompt, or a conversation in all, is at most so many characters long."""
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return limit is None or sum(len(text) for text in texts) <= limit


def _compare(engine: "Engine", contenders: "list[Contender]", workload: "Workload", options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mtad.bench.compare import continue_record, open_record, run_comparison
    from mtad.results.comparison import summaries_to_json, summarize
    from mtad.results.files import read_json, write_json

    record = open_record(engine, contenders, workload)
    if options.record is not None:
        if options.record.exists():
            record = continue_record(read_json(options.record), record)
        write_json(options.record, record)
    status = 0
    total = sum(1 for _ in workload.batches()) * len(contenders)
    with tqdm(total=total, unit="batch", disable=None, leave=False) as bar:

        def note(label: str) -> None:
            bar.set_postfix_str(label, refresh=False)
            bar.update()
            if options.record is not None:
                write_json(options.record, record)

        try:
            run_comparison(engine, contenders, workload, record, note)
        except KeyboardInterrupt:
            print("[interrupted]", file=sys.stderr)
            status = 130
    summaries = summarize(record)
    if options.json:
        from mtad.cli.output import to_json

        print(to_json({"run": record["run"], "models": record["models"], "rows": summaries_to_json(summaries)}))
    elif summaries:
        print(format_table(HEADINGS, [_cells(item, record) for item in summaries]))
    return status


def _cells(item: "MethodSummary", record: dict[str, Any]) -> list[str]:
    is_lossless = record["rows"][item.label]["is_lossless"]
    return [
        item.label,
        {True: "yes", False: "no", None: ""}[is_lossless],
        f"{item.tokens_per_call.value:.2f}",
        "/".join(f"{100 * share:.0f}" for share in item.acceptance_by_depth),
        f"{item.perplexity.value:.3f}",
        "" if item.perplexity_change is None else f"{item.perplexity_change.value:+.1%}",
        "" if item.refused_share is None else f"{item.refused_share:.1%}",
        f"{item.tokens_per_answer:.0f}",
        f"{item.cut_share:.0%}",
        f"{item.tokens_per_s:.1f}",
        "" if item.speed_ratio is None else f"{item.speed_ratio.value:.2f}x",
    ]
