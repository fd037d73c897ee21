"""Logits processors of transformers, at every place of every row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtad.constraints.places import Path, Places
from mtad.sampling import upcast
from mtad.structures.constraints import LogitsProcessor, RowConstraints


@dataclass(slots=True)
class _Row:
    """One row's text on the host, and what is called with it."""

    processors: tuple[LogitsProcessor, ...]
    token_ids: list[int]


class ProcessorConstraint:
    """Calls each row's logits processors once per place, with the token ids that lead there.

    The ids of a place are prompt, answer and its own drafted path, `[1, tokens]`, so a processor that is a function of
    ids and scores says the same under any drafter and in any batch.

    Args:
        prompts: Token ids of each row.
        rows: Their processors.
    """

    needs_host = True
    may_forbid = True

    def __init__(self, prompts: Sequence[Sequence[int]], rows: Sequence[RowConstraints]) -> None:
        self._rows = [_Row(row.logits_processors, list(prompt)) for prompt, row in zip(prompts, rows, strict=True)]

    def apply(self, scores: Tensor, places: Places, active: Sequence[bool]) -> Tensor:
        """See `Constraint.apply`."""
        changed = []
        scores = upcast(scores)
        for row, paths, own, is_active in zip(self._rows, places.paths(), scores, active, strict=True):
            if is_active and row.processors:
                changed.append(torch.cat([_process(row, path, own[i : i + 1]) for i, path in enumerate(paths)]))
            else:
                changed.append(own)
        return torch.stack(changed)

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """The host hears of it in `note`."""

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """See `Constraint.note`."""
        for row, new in zip(self._rows, tokens, strict=True):
            row.token_ids += new

    def join(self, other: "ProcessorConstraint") -> None:
        """See `Constraint.join`."""
        self._rows += other._rows

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `Constraint.select_rows`."""
        self._rows = [self._rows[row] for row in rows]


def _process(row: _Row, path: Path, scores: Tensor) -> Tensor:
    token_ids = torch.tensor([[*row.token_ids, *path]], device=scores.device)
    # Processors may write into what they are given.
    scores = scores.clone()
    for processor in row.processors:
        scores = processor(token_ids, scores)
    return scores
