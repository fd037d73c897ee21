"""Answers confined to a grammar: tokens that it does not allow get no probability."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtad.constraints.places import Places
from mtad.structures.constraints import RowConstraints

_BITS = 8


class GrammarConstraint:
    """Follows each row through its grammar and masks the logits of every place.

    Args:
        rows: Their grammars.
    """

    needs_host = True
    may_forbid = True

    def __init__(self, rows: Sequence[RowConstraints]) -> None:
        self._cursors = [None if row.grammar is None else row.grammar.cursor() for row in rows]

    def apply(self, scores: Tensor, places: Places, active: Sequence[bool]) -> Tensor:
        """See `Constraint.apply`."""
        batch, count, vocab_size = scores.shape
        words = torch.full((batch, count, -(-vocab_size // 32)), -1, dtype=torch.int32)
        for row, (cursor, paths) in enumerate(zip(self._cursors, places.paths(), strict=True)):
            if cursor is None or not active[row]:
                continue
            for place, path in enumerate(paths):
                allowed = cursor.allowed(path)
                if allowed is not None:
                    words[row, place] = allowed
        return scores.masked_fill(_forbidden(words.to(scores.device), vocab_size), -torch.inf)

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """The host hears of it in `note`."""

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """See `Constraint.note`."""
        for cursor, new in zip(self._cursors, tokens, strict=True):
            if cursor is not None:
                cursor.advance(new)

    def join(self, other: "GrammarConstraint") -> None:
        """See `Constraint.join`."""
        self._cursors += other._cursors

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `Constraint.select_rows`."""
        self._cursors = [self._cursors[row] for row in rows]


def _forbidden(words: Tensor, vocab_size: int) -> Tensor:
    """Whether each token's bit is missing, `[..., vocab]` bool, from little-endian `[..., words]` int32."""
    bits = torch.ones(_BITS, dtype=torch.uint8, device=words.device) << torch.arange(_BITS, device=words.device)
    octets = words.view(torch.uint8).unsqueeze(-1)
    return ((octets & bits.to(torch.uint8)) == 0).flatten(-2)[..., :vocab_size]
