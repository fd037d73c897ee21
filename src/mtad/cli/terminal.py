"""What a person sees: coloured tokens and one line of statistics."""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

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


def write_piece(piece: Piece, *, is_colored: bool) -> None:
    """Write a piece to stdout at once."""
    sys.stdout.write(color_segments(piece.segments, is_colored=is_colored))
    sys.stdout.flush()


def statistics_line(result: GenerationResult, *, is_colored: bool) -> str:
    """Tokens, tokens per call, acceptance, tokens/s and perplexity of one answer in one line."""
    stats = result.stats
    parts = [f"{stats.num_tokens} tokens", f"{stats.tokens_per_call:.2f} tokens/call"]
    if stats.acceptance_by_depth:
        shares = " ".join(f"{share:.0%}" for share in stats.acceptance_by_depth)
        parts.append(f"kept by depth {shares}")
    parts += [f"{stats.tokens_per_s:.1f} tokens/s", f"perplexity {stats.perplexity:.2f}", result.finish_reason]
    if is_colored:
        drafted = sum(origin == "drafted" for origin in result.provenance)
        legend = f"{DRAFTED}{drafted} drafted{RESET}{FAINT}, {stats.num_tokens - drafted} by the target"
        return f"{FAINT}[{result.method}: {' · '.join(parts)} · {legend}]{RESET}"
    return f"[{result.method}: {' · '.join(parts)}]"


def note(message: str) -> None:
    """A passing remark on stderr, for people only."""
    if sys.stderr.isatty():
        print(f"{FAINT}{message}{RESET}", file=sys.stderr)
