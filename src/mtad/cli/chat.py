"""`mtad chat`: a conversation in the terminal."""

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtad.cli.generate import load_engine
from mtad.cli.parser import add_common, read_settings
from mtad.config import METHOD_NAMES, GenerationOptions, replace_settings
from mtad.errors import MtadError

if TYPE_CHECKING:
    from mtad.api import Engine
    from mtad.structures.results import GenerationResult

EXAMPLES = """examples:
  mtad chat
  mtad chat --system "Answer in one sentence." --temperature 0.7
  mtad chat --target ./my-model --draft ./my-draft

commands while chatting:
  /help  /reset  /method NAME  /threshold X  /stats  /quit
"""

HELP = f"""/help           this list
/reset          forget the conversation
/method NAME    one of {", ".join(METHOD_NAMES)}
/threshold X    tau in (0, 1]; lower keeps more of the draft
/stats          numbers of the last answer
/quit           leave; Ctrl-D does too. Ctrl-C stops an answer."""


def add_command(commands: Any) -> None:
    """Add the `chat` subcommand."""
    parser = commands.add_parser(
        "chat",
        help="talk to the model in the terminal",
        description="Chat in the terminal; drafted tokens are green. Ctrl-C stops an answer, Ctrl-D leaves.",
        epilog=EXAMPLES,
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    # The conversation may switch to a method that drafts, so the draft is always loaded where there is one.
    engine = load_engine(models, replace(generation, method="mmtad", drafter=None, verifier=None))

    from mtad.cli.terminal import note, wants_color

    note("type /help for commands, Ctrl-D to leave")
    session = ChatSession(engine, generation, system=options.system, is_colored=wants_color(options.color, sys.stdout))
    session.loop()
    return 0


class ChatSession:
    """A conversation, its settings and the last answer's numbers."""

    def __init__(
        self, engine: "Engine", generation: GenerationOptions, *, system: str | None, is_colored: bool
    ) -> None:
        self.engine = engine
        self.generation = generation
        self.is_colored = is_colored
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._opening)
        self.last_result: GenerationResult | None = None

    def loop(self) -> None:
        """Read lines until the end of input or /quit."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  (line editing and history for input())
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit leaves)")
                continue
            if line == "/quit":
                return
            if line:
                self.handle(line)

    def handle(self, line: str) -> None:
        """Answer a line, or carry out a command; a mistake is reported and changes nothing."""
        try:
            if line.startswith("/"):
                print(self._command(*line[1:].split(maxsplit=1)))
            else:
                self._answer(line)
        except MtadError as error:
            print(f"mtad: {error}", file=sys.stderr)

    def _command(self, name: str = "", argument: str = "") -> str:
        from mtad.cli.terminal import statistics_line

        if name == "help":
            return HELP
        if name == "reset":
            self.messages = list(self._opening)
            return "(conversation forgotten)"
        if name == "stats":
            if self.last_result is None:
                return "(no answer yet)"
            return statistics_line(self.last_result, is_colored=self.is_colored)
        if name == "method":
            self.generation = replace_settings(self.generation, {"method": argument}, "/method")
            return f"(method {argument})"
        if name == "threshold":
            self.generation = replace_settings(self.generation, {"threshold": _number(argument)}, "/threshold")
            return f"(threshold {self.generation.threshold:g})"
        return f"unknown command /{name}; /help lists the commands"

    def _answer(self, line: str) -> None:
        from mtad.cli.terminal import statistics_line, write_piece

        messages = [*self.messages, {"role": "user", "content": line}]
        pieces = self.engine.stream([messages], self.generation)
        text = ""
        try:
            for piece in pieces:
                text += piece.text
                write_piece(piece, is_colored=self.is_colored)
                self.last_result = piece.result or self.last_result
        except KeyboardInterrupt:
            sys.stdout.write(" (stopped)")
        finally:
            pieces.close()
            print()
        self.messages = [*messages, {"role": "assistant", "content": text}]
        if self.last_result is not None and sys.stderr.isatty():
            print(statistics_line(self.last_result, is_colored=True), file=sys.stderr)


def _number(text: str) -> float | str:
    """The number in `text`, or the text itself for the setting's own check to refuse."""
    try:
        return float(text)
    except ValueError:
        return text
