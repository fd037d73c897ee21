"""Draws a real run as a picture of a terminal: `python tools/terminal_picture.py OUTPUT.svg [PROMPT]`."""

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mtad import Engine, GenerationResult, Piece

COLUMNS = 92
LINE_HEIGHT = 20
CHARACTER_WIDTH = 8.43
MARGIN = 18
COLORS = {"drafted": "#3fb950", "target": "#e6edf3", "faint": "#8b949e", "prompt": "#79c0ff"}


@dataclass(frozen=True)
class Word:
    """A run of characters of one colour on one line."""

    text: str
    color: str


def wrap(segments: list[tuple[str, str]]) -> list[list[Word]]:
    """Break coloured text into lines of at most `COLUMNS` characters, at spaces where there are any."""
    characters = [(character, color) for text, color in segments for character in text]
    lines: list[list[tuple[str, str]]] = [[]]
    for character, color in characters:
        if character == "\n":
            lines.append([])
            continue
        lines[-1].append((character, color))
        if len(lines[-1]) > COLUMNS:
            spaces = [index for index, (letter, _) in enumerate(lines[-1]) if letter == " "]
            cut = spaces[-1] + 1 if spaces else COLUMNS
            lines.append(lines[-1][cut:])
            lines[-2] = lines[-2][:cut]
    return [_join(line) for line in lines]


def to_svg(lines: list[list[Word]]) -> str:
    """One picture with a dark background that reads well on light and dark pages."""
    width = round(COLUMNS * CHARACTER_WIDTH + 2 * MARGIN)
    height = len(lines) * LINE_HEIGHT + 2 * MARGIN
    rows = []
    for number, line in enumerate(lines):
        spans = "".join(f'<tspan fill="{word.color}">{escape(word.text)}</tspan>' for word in line)
        baseline = MARGIN + (number + 1) * LINE_HEIGHT - 6
        rows.append(f'<text x="{MARGIN}" y="{baseline}" xml:space="preserve">{spans}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img"><title>Output of mtad generate: drafted tokens in green, target tokens in white</title>'
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>'
        f'<g font-family="ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace" font-size="14">'
        f"{''.join(rows)}</g></svg>\n"
    )


def picture_segments(prompt: str, pieces: list[Piece], result: GenerationResult) -> list[tuple[str, str]]:
    """The command, the answer and its statistics as coloured text."""
    from mtad.cli.terminal import statistics_line

    segments = [("$ ", COLORS["faint"]), (f'mtad generate "{prompt}" --seed 1\n', COLORS["prompt"])]
    segments += [(text, COLORS[origin]) for piece in pieces for text, origin in piece.segments]
    segments.append(("\n" + statistics_line(result, is_colored=False), COLORS["faint"]))
    return segments


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw a real run as a picture of a terminal.")
    parser.add_argument("output", type=Path)
    parser.add_argument("prompt", nargs="?", default="Explain why the sky is blue.")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args()
    engine = Engine.from_pretrained()
    pieces = list(engine.stream(options.prompt, seed=1, max_new_tokens=options.max_new_tokens))
    result = pieces[-1].result
    assert result is not None
    options.output.write_text(to_svg(wrap(picture_segments(options.prompt, pieces, result))), encoding="utf-8")
    return 0


def _join(line: list[tuple[str, str]]) -> list[Word]:
    words: list[Word] = []
    for character, color in line:
        if words and words[-1].color == color:
            words[-1] = Word(words[-1].text + character, color)
        else:
            words.append(Word(character, color))
    return words


if __name__ == "__main__":
    sys.exit(main())
