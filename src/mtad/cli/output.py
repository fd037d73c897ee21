"""Three ways to show answers: a live stream, finished texts, and JSON lines."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Self

from tqdm import tqdm

from mtad.cli.terminal import color_segments, statistics_line, wants_color, write_piece
from mtad.structures.results import GenerationResult, Piece


class StreamOutput:
    """Writes one answer token by token.

    Args:
        color: `auto`, `always` or `never`.
    """

    def __init__(self, *, color: str) -> None:
        self._color = color
        self._is_inside_line = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take(self, piece: Piece) -> None:
        """Show a piece; the last one is followed by the statistics."""
        write_piece(piece, is_colored=wants_color(self._color, sys.stdout))
        if piece.text:
            self._is_inside_line = not piece.text.endswith("\n")
        if piece.result is not None:
            self._end_line()
            print_statistics(piece.result, self._color)

    def interrupt(self) -> None:
        """End the line; the partial text stays."""
        self._end_line()
        print("[interrupted]", file=sys.stderr)

    def _end_line(self) -> None:
        if self._is_inside_line:
            print(flush=True)
        self._is_inside_line = False


class _OrderedOutput:
    """Keeps the pieces of every row and shows finished rows in the order of the prompts."""

    def __init__(self, prompts: Sequence[Any]) -> None:
        self._prompts = prompts
        self._pieces: list[list[Piece]] = [[] for _ in prompts]
        self._next = 0
        self._bar = tqdm(total=len(prompts), unit="prompt", disable=None if len(prompts) > 1 else True, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

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
        """Show what the rows that were not shown yet have so far."""
        self._bar.close()
        for row in range(self._next, len(self._prompts)):
            if self._pieces[row]:
                self._show(row)
        print("[interrupted]", file=sys.stderr)

    def _is_finished(self, row: int) -> bool:
        return bool(self._pieces[row]) and self._pieces[row][-1].result is not None

    def _show(self, row: int) -> None:
        raise NotImplementedError


class TextOutput(_OrderedOutput):
    """Writes finished texts; several prompts get a heading each.

    Args:
        prompts: Texts or conversations, for the headings.
        color: `auto`, `always` or `never`.
    """

    def __init__(self, prompts: Sequence[Any], *, color: str) -> None:
        super().__init__(prompts)
        self._color = color

    def _show(self, row: int) -> None:
        pieces = self._pieces[row]
        if len(self._prompts) > 1:
            _write_line(f"=== {row + 1}/{len(self._prompts)}: {_heading(self._prompts[row])}")
        segments = [segment for piece in pieces for segment in piece.segments]
        _write_line(color_segments(segments, is_colored=wants_color(self._color, sys.stdout)))
        if pieces[-1].result is not None:
            print_statistics(pieces[-1].result, self._color)


class JsonOutput(_OrderedOutput):
    """Writes one JSON document per prompt.

    Args:
        prompts: Texts or conversations, repeated in the documents.
        method: Method, for answers that were interrupted.
        config: Resolved settings, for answers that were interrupted.
    """

    def __init__(self, prompts: Sequence[Any], *, method: str, config: dict[str, Any]) -> None:
        super().__init__(prompts)
        self._run = {"method": method, "config": config}

    def _show(self, row: int) -> None:
        pieces = self._pieces[row]
        result = pieces[-1].result
        document = _partial_document(pieces) | self._run if result is None else result.to_dict()
        _write_line(to_json({"index": row, "prompt": self._prompts[row]} | document))


def print_statistics(result: GenerationResult, color: str) -> None:
    """The statistics line on stderr."""
    tqdm.write(statistics_line(result, is_colored=wants_color(color, sys.stderr)), file=sys.stderr)


def to_json(document: dict[str, Any]) -> str:
    """One line of JSON; numbers that JSON has no word for become null."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(_clean(document), ensure_ascii=not is_utf8, allow_nan=False)


def _partial_document(pieces: Sequence[Piece]) -> dict[str, Any]:
    """What is known of an interrupted answer; what only a finished one has is null."""
    log_probs = [value for piece in pieces for value in piece.log_probs]
    unknown = ("target_calls", "tokens_per_call", "acceptance_by_depth", "prefill_s", "decode_s", "tokens_per_s")
    known = {
        "num_tokens": len(log_probs),
        "perplexity": math.exp(-sum(log_probs) / len(log_probs)) if log_probs else None,
    }
    return {
        "text": "".join(piece.text for piece in pieces),
        "token_ids": [token for piece in pieces for token in piece.token_ids],
        "provenance": [origin for piece in pieces for origin in piece.provenance],
        "log_probs": log_probs,
        "top_log_probs": [best for piece in pieces for best in piece.top_log_probs],
        "finish_reason": "cancelled",
        "stats": known | dict.fromkeys(unknown),
    }


def _write_line(line: str) -> None:
    """A line on stdout, past the progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def _clean(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _heading(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
