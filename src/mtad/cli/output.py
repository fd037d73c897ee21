"""Three ways to show answers: a live stream, finished texts, and JSON lines."""

import json
import math
import sys
from typing import Any, Self

from tqdm import tqdm

from mtad.cli.terminal import color_segments, statistics_line, write_piece
from mtad.structures.results import GenerationResult, Piece


class StreamOutput:
    """Writes one answer token by token."""

    def __init__(self, *, is_colored: bool) -> None:
        self._is_colored = is_colored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def take(self, piece: Piece) -> None:
        """Show a piece; the last one is followed by the statistics."""
        write_piece(piece, is_colored=self._is_colored)
        if piece.result is not None:
            sys.stdout.write("\n")
            sys.stdout.flush()
            print_statistics(piece.result)

    def interrupt(self) -> None:
        """End the line; the partial text stays."""
        sys.stdout.write("\n")
        print("[interrupted]", file=sys.stderr)


class _OrderedOutput:
    """Keeps the pieces of every row and shows finished rows in the order of the prompts."""

    def __init__(self, prompts: list[Any]) -> None:
        self._prompts = prompts
        self._pieces: list[list[Piece]] = [[] for _ in prompts]
        self._next = 0
        self._bar = tqdm(total=len(prompts), unit="prompt", disable=None if len(prompts) > 1 else True, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        sys.stdout.flush()

    def take(self, piece: Piece) -> None:
        """Keep a piece; shows every row that is finished and whose turn has come."""
        self._pieces[piece.row].append(piece)
        if piece.result is None:
            return
        self._bar.update()
        while self._next < len(self._prompts) and self._is_finished(self._next):
            self._show(self._next)
            self._next += 1

    def interrupt(self) -> None:
        """Show what the unfinished rows have so far."""
        self._bar.close()
        for row in range(self._next, len(self._prompts)):
            if self._pieces[row]:
                self._show(row)
        sys.stdout.flush()
        print("[interrupted]", file=sys.stderr)

    def _is_finished(self, row: int) -> bool:
        return bool(self._pieces[row]) and self._pieces[row][-1].result is not None

    def _show(self, row: int) -> None:
        raise NotImplementedError


class TextOutput(_OrderedOutput):
    """Writes finished texts; several prompts get a heading each."""

    def __init__(self, prompts: list[Any], *, is_colored: bool) -> None:
        super().__init__(prompts)
        self._is_colored = is_colored

    def _show(self, row: int) -> None:
        pieces = self._pieces[row]
        if len(self._prompts) > 1:
            tqdm.write(f"=== {row + 1}/{len(self._prompts)}: {_heading(self._prompts[row])}", file=sys.stdout)
        segments = [segment for piece in pieces for segment in piece.segments]
        tqdm.write(color_segments(segments, is_colored=self._is_colored), file=sys.stdout)
        sys.stdout.flush()
        if pieces[-1].result is not None:
            print_statistics(pieces[-1].result)


class JsonOutput(_OrderedOutput):
    """Writes one JSON document per prompt."""

    def _show(self, row: int) -> None:
        pieces = self._pieces[row]
        result = pieces[-1].result
        if result is not None:
            document = result.to_dict()
        else:
            document = {
                "text": "".join(piece.text for piece in pieces),
                "token_ids": [token for piece in pieces for token in piece.token_ids],
                "provenance": [origin for piece in pieces for origin in piece.provenance],
                "log_probs": [value for piece in pieces for value in piece.log_probs],
                "finish_reason": "cancelled",
            }
        tqdm.write(to_json({"index": row, "prompt": self._prompts[row]} | document), file=sys.stdout)


def print_statistics(result: GenerationResult) -> None:
    """The statistics line on stderr."""
    tqdm.write(statistics_line(result, is_colored=sys.stderr.isatty()), file=sys.stderr)


def to_json(document: dict[str, Any]) -> str:
    """One line of JSON; numbers that JSON has no word for become null."""
    return json.dumps(_clean(document), ensure_ascii=False, allow_nan=False)


def _clean(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _heading(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:67] + "..."
