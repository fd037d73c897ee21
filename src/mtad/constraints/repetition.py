"""Tokens that were said already become less likely."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtad.constraints.places import Places
from mtad.sampling import upcast
from mtad.structures.constraints import RowConstraints


class RepetitionPenalty:
    """Divides positive and multiplies negative logits of every token in the text (Keskar et al. 2019).

    The text of a place is prompt, answer and its own drafted path, as it is for single-token decoding.

    Args:
        prompts: Token ids of each row.
        rows: Their penalties.
        vocab_size: Width of the logits.
        device: Where the logits are.
    """

    needs_host = False
    may_forbid = False

    def __init__(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[RowConstraints], vocab_size: int, device: torch.device
    ) -> None:
        penalties = [row.repetition_penalty for row in rows]
        self._penalties = torch.tensor(penalties, dtype=torch.float64, device=device).view(-1, 1, 1)
        self._vocab_size = vocab_size
        # One more column takes the tokens that do not count.
        self._seen = torch.zeros(len(rows), vocab_size + 1, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            known = [token for token in prompt if token < vocab_size]
            self._seen[row, torch.tensor(known, dtype=torch.int64, device=device)] = True

    def apply(self, scores: Tensor, places: Places, active: Sequence[bool]) -> Tensor:
        """See `Constraint.apply`."""
        seen = self._seen.unsqueeze(1)
        if places.tokens.shape[1]:
            said = torch.where(places.on_path(), places.tokens.unsqueeze(1), self._vocab_size)
            seen = seen.repeat(1, scores.shape[1], 1).scatter_(-1, said, value=True)
        scores = upcast(scores)
        penalties = self._penalties.to(scores.dtype)
        penalised = torch.where(scores < 0, scores * penalties, scores / penalties)
        return torch.where(seen[..., : self._vocab_size], penalised, scores)

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """See `Constraint.append`."""
        order = torch.arange(tokens.shape[1], device=tokens.device)
        is_new = (order < counts.unsqueeze(1)) & active.unsqueeze(1)
        self._seen.scatter_(1, torch.where(is_new, tokens, self._vocab_size), value=True)

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """The device knows already."""

    def join(self, other: "RepetitionPenalty") -> None:
        """See `Constraint.join`."""
        self._penalties = torch.cat([self._penalties, other._penalties])
        self._seen = torch.cat([self._seen, other._seen])

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `Constraint.select_rows`."""
        self._penalties, self._seen = self._penalties[rows], self._seen[rows]
