"""`mtad chat`: a conversation in the terminal."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from mtad.cli.generate import load_engine
from mtad.cli.parser import add_common, read_settings
from mtad.cli.terminal import note, statistics_line, wants_color, write_piece
from mtad.config import METHOD_NAMES, GenerationOptions, replace_settings
from mtad.errors import CapacityError, MtadError

if TYPE_CHECKING:
    from mtad.api import Engine
    from mtad.structures.results import GenerationResult

DESCRIPTION = """Chat in the terminal. Drafted tokens are green; Ctrl-C stops an answer, Ctrl-D
leaves."""

EXAMPLES = """examples:
  mtad chat
  mtad chat --system "Answer in one sentence." --temperature 0.7
  mtad chat --target ./my-model --draft ./my-draft

commands while chatting:
  /help  /reset  /method NAME  /threshold X  /stats  /quit
"""

HELP = """/help           this list
/reset          forget the conversation
/method NAME    decode with another method
/threshold X    tau in (0, 1]; lower keeps more of the draft
/stats          numbers of the last answer
/quit           leave; Ctrl-D does too
Ctrl-C          stop an answer"""

LEAVE_HINT = "(Ctrl-D or /quit leaves)"


def add_command(commands: Any) -> None:
    """Add the `chat` subcommand."""
    parser = commands.add_parser(
        "chat",
        help="talk to the model in the terminal",
        usage="%(prog)s [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation = read_settings(options)
    # The conversation may switch to a method that drafts.
    engine = load_engine(models, generation, color=options.color, keeps_draft=True)
    note("type /help for commands, Ctrl-D to leave", options.color)
    ChatSession(engine, generation, system=options.system, color=options.color).loop()
    return 0


class ChatSession:
    """A conversation, its settings and the last answer's numbers.

    Args:
        engine: Answers.
        generation: Settings at the start.
        system: System message; survives /reset.
        color: `auto`, `always` or `never`.
    """

    def __init__(
        self, engine: "Engine", generation: GenerationOptions, *, system: str | None = None, color: str = "auto"
    ) -> None:
        self.engine = engine
        self.generation = generation
        self._color = color
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._opening)
        self.last_result: GenerationResult | None = None

    def loop(self) -> None:
        """Read lines until the end of input or /quit."""
        prompt = ""
        if sys.stdin.isatty():
            import readline  # noqa: F401  (line editing and history for input())

            prompt = "> "
        while True:
            try:
                line = input(prompt).strip()
                if line == "/quit":
                    return
                if line:
                    self.handle(line)
            except EOFError:
                if prompt:
                    print()
                return
            except KeyboardInterrupt:
                print(f"\n{LEAVE_HINT}")
            except UnicodeDecodeError as error:
                print(f"mtad: the line is not UTF-8 (byte {error.start}); type it again", file=sys.stderr)

    def handle(self, line: str) -> None:
        """Answer a line, or carry out a command; a mistake is reported and changes nothing."""
        try:
            if line.startswith("/"):
                print(self._command(*line[1:].split(maxsplit=1)))
            else:
                self._answer(line)
        except CapacityError as error:
            print(f"mtad: {error}; /reset starts a new conversation", file=sys.stderr)
        except MtadError as error:
            print(f"mtad: {error}", file=sys.stderr)

    def _command(self, name: str = "", argument: str = "") -> str:
        if name == "help":
            return HELP
        if name == "reset":
            self.messages = list(self._opening)
            return "(conversation forgotten)"
        if name == "stats":
            return self._statistics()
        if name == "method":
            return self._set_method(argument)
        if name == "threshold":
            self.generation = replace_settings(self.generation, {"threshold": _number(argument)}, "/threshold")
            return f"(threshold {self.generation.threshold:g})"
        return f"unknown command /{name}; /help lists the commands"

    def _set_method(self, name: str) -> str:
        if not name:
            return f"(method {self.generation.method}; others: {', '.join(METHOD_NAMES)})"
        self.generation = replace_settings(self.generation, {"method": name}, "/method")
        return f"(method {name})"

    def _statistics(self) -> str:
        result = self.last_result
        if result is None:
            return "(no finished answer yet)"
        stats = result.stats
        return (
            f"{statistics_line(result, is_colored=wants_color(self._color, sys.stdout))}\n"
            f"{result.method}: prompt {stats.num_prompt_tokens} tokens, prefill {stats.prefill_s:.2f} s, "
            f"decoding {stats.decode_s:.2f} s"
        )

    def _answer(self, line: str) -> None:
        messages = [*self.messages, {"role": "user", "content": line}]
        parts: list[str] = []
        result = None
        pieces = self.engine.stream([messages], self.generation)
        try:
            for piece in pieces:
                parts.append(piece.text)
                write_piece(piece, is_colored=wants_color(self._color, sys.stdout))
                result = piece.result
        except KeyboardInterrupt:
            sys.stdout.write(" (stopped)")
        finally:
            pieces.close()
            print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": "".join(parts)}]
        if result is not None:
            self.last_result = result
            if sys.stderr.isatty():
                print(statistics_line(result, is_colored=wants_color(self._color, sys.stderr)), file=sys.stderr)


def _number(text: str) -> float | str:
    """The number in `text`, or the text itself for the setting's own check to refuse."""
    try:
        return float(text)
    except ValueError:
        return text
