"""What a draft has not read while it was left out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtad.decoding.outcome import RowOutcome
from mtad.models.row_state import RowState

_LAST = 2
"""Tokens that a draft in step may be without: the pending one, and the one before it; drafting feeds both."""


class DraftLag:
    """Remembers the end of every row's text from where the draft's cache has no keys.

    A text ends with the pending token; a draft in step has read all but the last two, which it is fed with the next
    draft. A draft that was left out reads the rest before it drafts again, in one call.

    Attributes:
        tails: Unread tokens of every row, the pending one last.
    """

    def __init__(self) -> None:
        self.tails: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """Begin with rows whose prompts the draft has read."""
        self.tails = []
        self.add_rows(prompts)

    def add_rows(self, prompts: Sequence[Sequence[int]]) -> None:
        """Begin with some more rows, behind those that are there."""
        self.tails += [list(prompt[-_LAST:]) for prompt in prompts]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Go on with the named rows only, in that order; a row may be named twice."""
        self.tails = [list(self.tails[row]) for row in rows]

    def note(self, outcomes: Sequence[RowOutcome | None]) -> None:
        """Hear what the last iteration brought; None for idle rows."""
        for row, outcome in enumerate(outcomes):
            if outcome is not None:
                tail = self.tails[row] + outcome.tokens
                self.tails[row] = tail if outcome.guarded_depth == 0 else tail[-_LAST:]

    @property
    def is_behind(self) -> bool:
        """Whether any row has something to be read."""
        return any(len(tail) > _LAST for tail in self.tails)

    def catch_up(self, state: RowState, active: Sequence[bool], device: torch.device, longest: int) -> None:
        """Let the draft read what it has not, in the active rows.

        Args:
            state: The draft's; its rows have the target's lengths, with nothing in the slots of unread tokens.
            active: Rows that go on.
            device: Where tokens go in.
            longest: No row has more cached tokens.
        """
        unread = [
            tail[:-1] if is_active and len(tail) > _LAST else []
            for tail, is_active in zip(self.tails, active, strict=True)
        ]
        self.tails = [tail[-_LAST:] for tail in self.tails]
        width = max(map(len, unread))
        if width:
            state.refeed(*_padded(unread, width, device), longest)


def _padded(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded tokens `[batch, width]` and their counts `[batch]`, int64."""
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64, device=device)
    return tokens, torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
