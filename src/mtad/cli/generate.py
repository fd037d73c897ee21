"""`mtad generate`: decode one prompt, a file of prompts, or standard input."""

import argparse
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.parser import add_common, add_setting, add_template_choice, read_settings
from mtad.cli.prompt_files import read_prompts
from mtad.cli.terminal import note
from mtad.config import GenerationOptions, ModelOptions, Setting
from mtad.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from mtad.api import Engine, PromptFormat
    from mtad.structures.results import Piece

DESCRIPTION = """Decode with a target model and a draft. The answer goes to standard output,
everything else to standard error. On a terminal drafted tokens are green."""

EXAMPLES = """examples:
  mtad generate "Explain why the sky is blue."
  mtad generate --threshold 0.9 --gamma 6 --seed 7 "Tell me a story."
  mtad generate --method autoregressive --temperature 0 --json "Name a river."
  mtad generate --prompts-file questions.jsonl --json > answers.jsonl
  echo "Once upon a time" | mtad generate --raw --max-new-tokens 64
  mtad generate --prompts-file questions.jsonl --trace run.arrow
  mtad generate --target ./my-model --draft ./my-draft --raw "SELECT"

A prompts file holds one prompt per line. In a .jsonl file a line is a text or
an object with "prompt" (text), "messages" (a conversation) or "turns" (texts).

The last line on a terminal counts tokens and tokens per call of the target, and
shows how many drafts were kept to depth 1, 2, ..., tokens/s and the perplexity.
"""

BATCH_SIZE = Setting(name="batch_size", help="prompts decoded at once", type=int, default=8, minimum=1)


def add_command(commands: Any) -> None:
    """Add the `generate` subcommand."""
    parser = commands.add_parser(
        "generate",
        help="decode a prompt, a file of prompts, or standard input",
        usage="%(prog)s [PROMPT] [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; standard input when left out")
    parser.add_argument("--prompts-file", type=Path, metavar="FILE", help="one prompt per line: text, or .jsonl")
    add_template_choice(parser)
    add_setting(parser, BATCH_SIZE)
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print tokens as they come (default: for one prompt on a terminal)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document per prompt and nothing else on stdout")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="keep every step for `mtad replay`")
    add_common(parser)
    parser.set_defaults(run=run, parser=parser, batch_size=BATCH_SIZE.default)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    BATCH_SIZE.check(options.batch_size)
    prompts = _collect_prompts(options)
    _check_stream(options, len(prompts))
    if options.trace is not None:
        from mtad.decoding import check_traceable
        from mtad.results.trace_format import check_trace_path

        check_trace_path(options.trace)
        check_traceable(generation)
        generation = generation.for_measurement()
    engine = load_engine(models, generation, color=options.color, given=vars(options))

    from mtad.api import PromptFormat

    style = PromptFormat(is_chat=options.is_chat, system=options.system)
    return _decode(engine, prompts, generation, style, options)


def describe_twins(models: ModelOptions) -> str:
    """What is said beside every figure of a pair that was enlarged; empty where it was not."""
    shapes = {"target": models.target_shape, "draft": models.draft_shape}
    enlarged = [f"the {role} is enlarged to {shape}" for role, shape in shapes.items() if shape is not None]
    return f"cost twin: {' and '.join(enlarged)} without changing its text" if enlarged else ""


def load_engine(
    models: ModelOptions,
    generation: GenerationOptions,
    *,
    color: str,
    given: Collection[str] = (),
    keeps_draft: bool = False,
) -> "Engine":
    """Load the models that the method needs.

    Args:
        models: Which models.
        generation: The method; what does not fit together is reported before anything is loaded.
        color: Of the notice that loading takes a while: `auto`, `always` or `never`.
        given: Settings that were given as flags; a dial of another rule among them is refused.
        keeps_draft: Load the draft even for a method that needs none.

    Raises:
        ConfigError: The method needs a draft and none is named.
    """
    note(f"loading {models.target} ...", color)

    from mtad.api import Engine
    from mtad.api.constraints import check_grammars
    from mtad.decoding import check_rule_options, needs_draft_model
    from mtad.models.loading import load_models
    from mtad.models.pairs import KNOWN_PAIRS

    check_rule_options(generation, given)
    check_grammars(generation)
    needs_draft = needs_draft_model(generation)
    if needs_draft and models.draft is None and models.target not in KNOWN_PAIRS:
        raise ConfigError(
            f"method {generation.method} needs a draft model; name one with --draft, or use --method autoregressive"
        )
    loaded = load_models(models, wants_draft=needs_draft or keeps_draft)
    if twins := describe_twins(models):
        note(twins, color)
    if loaded.vocabulary is not None:
        note(f"the draft has another vocabulary and drafts only {loaded.vocabulary}", color)
    return Engine(loaded)


def _collect_prompts(options: argparse.Namespace) -> list[Any]:
    if options.prompts_file is not None:
        if options.prompt is not None:
            raise ConfigError("got both a prompt and --prompts-file; give one of them")
        return read_prompts(options.prompts_file)
    if options.prompt is None:
        return [_read_stdin()]
    if not options.prompt.strip():
        raise PromptError("the prompt is empty; give some text to continue or answer")
    return [options.prompt]


def _check_stream(options: argparse.Namespace, num_prompts: int) -> None:
    if options.stream and options.json:
        raise ConfigError("got both --stream and --json; give one of them")
    if options.stream and num_prompts > 1:
        raise ConfigError(f"--stream shows one prompt, got {num_prompts}; leave it out")


def _read_stdin() -> str:
    where = "give one as an argument, with --prompts-file, or on standard input"
    if sys.stdin is None or sys.stdin.isatty():
        raise PromptError(f"no prompt; {where}")
    try:
        prompt = sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8 (byte {error.start}); pipe UTF-8 text") from error
    if not prompt.strip():
        raise PromptError(f"standard input holds no prompt; {where}")
    return prompt


def _decode(
    engine: "Engine",
    prompts: list[Any],
    generation: GenerationOptions,
    style: "PromptFormat",
    options: argparse.Namespace,
) -> int:
    from mtad.cli.output import JsonOutput, StreamOutput, TextOutput

    streams = options.stream if options.stream is not None else len(prompts) == 1 and sys.stdout.isatty()
    output: JsonOutput | StreamOutput | TextOutput
    if options.json:
        output = JsonOutput(prompts, method=generation.method, config=engine.settings_record(generation))
    elif streams and len(prompts) == 1:
        output = StreamOutput(color=options.color)
    else:
        output = TextOutput(prompts, color=options.color)
    pieces = engine.stream(prompts, generation, style=style, batch_size=options.batch_size, trace=options.trace)
    return _drain(pieces, output)


def _drain(pieces: "Iterator[Piece]", output: Any) -> int:
    """Feed every piece to the output; an interrupt keeps what is there and gives status 130."""
    with output:
        try:
            for piece in pieces:
                output.take(piece)
        except KeyboardInterrupt:
            output.interrupt()
            return 130
    return 0
