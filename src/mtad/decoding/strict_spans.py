"""Follows each row's text to tell when it is inside code, JSON or a span the caller named."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mtad.decoding.outcome import RowOutcome
from mtad.structures.rows import RowControls

FENCE = "```"


class SpanScanner(Protocol):
    """Reads a text piece by piece.

    Attributes:
        last_characters: The characters that can complete an opener.
    """

    last_characters: str

    @property
    def is_inside(self) -> bool:
        """Whether the text so far ends inside a span."""
        ...

    def feed(self, text: str) -> None:
        """Read on."""
        ...


class DelimitedScanner:
    """Spans between two delimiters; they do not nest.

    Args:
        opener: Text that opens a span.
        closer: Text that closes it; may be the same.
    """

    def __init__(self, opener: str, closer: str) -> None:
        self.opener = opener
        self.closer = closer
        self.is_inside = False
        self.last_characters = opener[-1]
        self._unread = ""

    def feed(self, text: str) -> None:
        """See `SpanScanner.feed`."""
        self._unread += text
        while True:
            delimiter = self.closer if self.is_inside else self.opener
            _, found, rest = self._unread.partition(delimiter)
            if not found:
                break
            self._unread = rest
            self.is_inside = not self.is_inside
        # A delimiter may go on with the next piece.
        self._unread = self._unread[-(len(delimiter) - 1) :] if len(delimiter) > 1 else ""


class JsonScanner:
    """Spans from a brace or bracket to the one that closes it; brackets inside JSON texts do not count."""

    last_characters = "{["

    def __init__(self) -> None:
        self._depth = 0
        self._is_text = False
        self._is_escaped = False

    @property
    def is_inside(self) -> bool:
        """See `SpanScanner`."""
        return self._depth > 0

    def feed(self, text: str) -> None:
        """See `SpanScanner.feed`."""
        for character in text:
            self._take(character)

    def _take(self, character: str) -> None:
        if self._is_text:
            self._is_text = self._is_escaped or character != '"'
            self._is_escaped = character == "\\" and not self._is_escaped
        elif character == '"' and self._depth:
            self._is_text = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth = max(self._depth - 1, 0)


def build_scanner(kind: str) -> SpanScanner:
    """The scanner of `code`, `json` or `OPENER,CLOSER`."""
    if kind == "code":
        return DelimitedScanner(FENCE, FENCE)
    if kind == "json":
        return JsonScanner()
    opener, _, closer = kind.partition(",")
    return DelimitedScanner(opener, closer)


@dataclass(frozen=True, slots=True)
class SpanVocabulary:
    """The text of every token, and which tokens may open a strict span.

    Attributes:
        texts: Text of each token by itself.
        openers: Tokens that hold a character which completes an opener, `[vocab]` bool.
    """

    texts: Sequence[str]
    openers: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], kinds: Sequence[str], device: torch.device | str) -> "SpanVocabulary":
        """Look the openers up.

        Args:
            texts: Text of each token by itself.
            kinds: What `build_scanner` takes.
            device: Where `openers` lives.
        """
        last = {character for kind in kinds for character in build_scanner(kind).last_characters}
        openers = [any(character in last for character in text) for text in texts]
        return cls(texts, torch.tensor(openers, device=device))


class StrictSpans:
    """Marks the rows whose answer is inside a strict span; a `RowPolicy`.

    Args:
        vocabulary: Texts of the tokens.
        kinds: What `build_scanner` takes, at least one; a row is strict while any of them is inside a span.
    """

    needs_host = True

    def __init__(self, vocabulary: SpanVocabulary, kinds: Sequence[str]) -> None:
        self._texts = vocabulary.texts
        self._build: Callable[[], list[SpanScanner]] = lambda: [build_scanner(kind) for kind in kinds]
        self._scanners: list[list[SpanScanner]] = []

    def start(self, num_rows: int) -> None:
        """See `RowPolicy.start`."""
        self._scanners = []
        self.add_rows(num_rows)

    def add_rows(self, count: int) -> None:
        """See `RowPolicy.add_rows`."""
        self._scanners += [self._build() for _ in range(count)]

    def apply(self, rows: RowControls) -> RowControls:
        """See `RowPolicy.apply`."""
        flags = [any(scanner.is_inside for scanner in scanners) for scanners in self._scanners]
        return replace(rows, is_strict=torch.tensor(flags, device=rows.seeds.device))

    def note(self, outcomes: Sequence[RowOutcome | None]) -> None:
        """See `RowPolicy.note`."""
        for scanners, outcome in zip(self._scanners, outcomes, strict=True):
            if outcome is not None:
                text = "".join(self._texts[token] for token in outcome.tokens)
                for scanner in scanners:
                    scanner.feed(text)

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `RowPolicy.select_rows`."""
        self._scanners = [self._scanners[row] for row in rows]
