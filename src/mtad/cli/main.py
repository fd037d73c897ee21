"""The `mtad` command."""

import errno
import io
import os
import sys
from collections.abc import Sequence

from mtad import __version__
from mtad.cli import (
    bench,
    calibrate,
    chat,
    compare,
    distill,
    doctor,
    energy,
    evaluate,
    experiment,
    generate,
    judge,
    replay,
    report,
    serve,
)
from mtad.cli.parser import Parser
from mtad.errors import MtadError

INTERRUPTED = 130
USAGE_ERROR = 2
OUTPUT_ERROR = 1

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

DESCRIPTION = """Multi-token joint decoding: faster and likelier text from a large model with the
help of a small one. `mtad COMMAND --help` lists the flags of a command."""

EXAMPLES = """examples:
  mtad generate "Explain why the sky is blue."
  mtad generate --method speculative --temperature 0 "Write a haiku about rain."
  mtad chat --threshold 0.9
  mtad serve --port 8000
  mtad compare --prompts-file questions.jsonl
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 is success, 2 bad input or a model that cannot be had, 130 an interrupt, 1 an output that cannot be written.
    """
    _prepare_streams()
    try:
        options, extra = build_parser().parse_known_args(arguments)
        if extra:
            options.parser.refuse(extra)
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except MtadError as error:
        print(f"mtad: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("mtad: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return OUTPUT_ERROR
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_output()
        print(f"mtad: the output cannot be written ({error.strerror}); free some space", file=sys.stderr)
        return OUTPUT_ERROR


def build_parser() -> Parser:
    """The parser with every subcommand."""
    parser = Parser(prog="mtad", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"mtad {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    generate.add_command(commands)
    chat.add_command(commands)
    serve.add_command(commands)
    compare.add_command(commands)
    replay.add_command(commands)
    bench.add_command(commands)
    energy.add_command(commands)
    evaluate.add_command(commands)
    distill.add_command(commands)
    experiment.add_command(commands)
    calibrate.add_command(commands)
    judge.add_command(commands)
    doctor.add_command(commands)
    report.add_command(commands)
    return parser


def _prepare_streams() -> None:
    """Characters that a terminal's encoding lacks are escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Point stdout at nothing, so that the interpreter's own flush stays quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
