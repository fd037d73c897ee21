"""Tokens that the answer holds already become less likely, by their number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtad.constraints.places import Places
from mtad.sampling import upcast
from mtad.structures.constraints import RowConstraints


class OccurrencePenalty:
    """Subtracts `presence_penalty` from the logits of tokens in the answer, and `frequency_penalty` times their count.

    As in OpenAI's interface the prompt does not count; the answer of a place ends with its own drafted path.

    Args:
        rows: Their penalties.
        vocab_size: Width of the logits.
        device: Where the logits are.
    """

    needs_host = False
    may_forbid = False

    def __init__(self, rows: Sequence[RowConstraints], vocab_size: int, device: torch.device) -> None:
        penalties = [[row.presence_penalty, row.frequency_penalty] for row in rows]
        self._penalties = torch.tensor(penalties, dtype=torch.float64, device=device).view(-1, 2, 1, 1)
        self._vocab_size = vocab_size
        # One more column takes the tokens that do not count.
        self._counts = torch.zeros(len(rows), vocab_size + 1, dtype=torch.int32, device=device)

    def apply(self, scores: Tensor, places: Places, active: Sequence[bool]) -> Tensor:
        """See `Constraint.apply`."""
        counts = self._counts.unsqueeze(1)
        if places.tokens.shape[1]:
            said = torch.where(places.on_path(), places.tokens.unsqueeze(1), self._vocab_size)
            ones = torch.ones((), dtype=counts.dtype, device=counts.device).expand(said.shape)
            counts = counts.repeat(1, scores.shape[1], 1).scatter_add_(-1, said, ones)
        scores = upcast(scores)
        counts = counts[..., : self._vocab_size].to(scores.dtype)
        presence, frequency = self._penalties.to(scores.dtype).unbind(1)
        return scores - presence * counts.clamp(max=1) - frequency * counts

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """See `Constraint.append`."""
        order = torch.arange(tokens.shape[1], device=tokens.device)
        is_new = (order < counts.unsqueeze(1)) & active.unsqueeze(1)
        self._counts.scatter_add_(1, torch.where(is_new, tokens, self._vocab_size), is_new.to(self._counts.dtype))

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """The device knows already."""

    def join(self, other: "OccurrencePenalty") -> None:
        """See `Constraint.join`."""
        self._penalties = torch.cat([self._penalties, other._penalties])
        self._counts = torch.cat([self._counts, other._counts])

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `Constraint.select_rows`."""
        self._penalties, self._counts = self._penalties[rows], self._counts[rows]
