"""The `mtad` command."""

import os
import sys
from collections.abc import Sequence

from mtad import __version__
from mtad.cli import chat, generate
from mtad.cli.parser import Parser
from mtad.errors import MtadError

INTERRUPTED = 130
USAGE_ERROR = 2

DESCRIPTION = "Multi-token joint decoding: faster and likelier text from a large model and a small one."

EXAMPLES = """examples:
  mtad generate "Explain why the sky is blue."
  mtad generate --method speculative --temperature 0 "Write a haiku about rain."
  mtad chat --threshold 0.9
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    try:
        options = build_parser().parse_args(arguments)
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
        # The reader has gone; point stdout elsewhere so that the interpreter's own flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> Parser:
    """The parser with every subcommand."""
    parser = Parser(prog="mtad", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"mtad {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    generate.add_command(commands)
    chat.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
