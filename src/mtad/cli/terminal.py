"""What a person sees: coloured tokens, one line of statistics, passing remarks."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from mtad.structures.results import GenerationResult, Piece

DRAFTED = "\x1b[32m"
FAINT = "\x1b[2m"
RESET = "\x1b[0m"


def wants_color(choice: str, stream: TextIO) -> bool:
    """Whether to colour output: `always`, `never`, or `auto` for a terminal without NO_COLOR."""
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def color_segments(segments: Sequence[tuple[str, str]], *, is_colored: bool) -> str:
    """Text with drafted parts in green."""
    if not is_colored:
        return "".join(text for text, _ in segments)
    return "".join(f"{DRAFTED}{text}{RESET}" if origin == "drafted" else text for text, origin in segments)


def write_piece(piece: "Piece", *, is_colored: bool) -> None:
    """Write a piece to stdout at once."""
    sys.stdout.write(color_segments(piece.segments, is_colored=is_colored))
    sys.stdout.flush()


def statistics_line(result: "GenerationResult", *, is_colored: bool) -> str:
    """Tokens, tokens per call, acceptance by depth, tokens/s and perplexity of one answer, in one line."""
    stats = result.stats
    unit = "token" if stats.num_tokens == 1 else "tokens"
    cut = ", cut" if result.finish_reason == "length" else ""
    acceptance = ""
    if stats.acceptance_by_depth:
        shares = "/".join(f"{100 * share:.0f}" for share in stats.acceptance_by_depth)
        acceptance = f"kept {shares}%"
    parts = [
        f"{stats.num_tokens} {unit}{cut}",
        f"{stats.tokens_per_call:.2f}/call",
        f"{RESET}{DRAFTED}{acceptance}{RESET}{FAINT}" if acceptance and is_colored else acceptance,
        f"{stats.tokens_per_s:.1f}/s",
        f"perplexity {stats.perplexity:.2f}",
    ]
    line = f"[{' · '.join(part for part in parts if part)}]"
    return f"{FAINT}{line}{RESET}" if is_colored else line


def note(message: str, color: str) -> None:
    """A passing remark on stderr, for people only."""
    if sys.stderr.isatty():
        is_colored = wants_color(color, sys.stderr)
        print(f"{FAINT}{message}{RESET}" if is_colored else message, file=sys.stderr, flush=True)
