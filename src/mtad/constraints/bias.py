"""Numbers added to the logits of single tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtad.constraints.places import Places
from mtad.sampling import upcast
from mtad.structures.constraints import RowConstraints


class LogitBias:
    """Adds each row's own numbers to the logits of its own tokens, the same at every place.

    Args:
        rows: Their biases.
        vocab_size: Width of the logits.
        device: Where the logits are.
    """

    needs_host = False

    def __init__(self, rows: Sequence[RowConstraints], vocab_size: int, device: torch.device) -> None:
        self.may_forbid = any(math.isinf(value) for row in rows for _, value in row.logit_bias)
        self._bias = torch.zeros(len(rows), 1, vocab_size, device=device)
        for row, constraints in enumerate(rows):
            for token, value in constraints.logit_bias:
                self._bias[row, 0, token] = value

    def apply(self, scores: Tensor, places: Places, active: Sequence[bool]) -> Tensor:
        """See `Constraint.apply`."""
        return upcast(scores) + self._bias

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """The text does not matter."""

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """The text does not matter."""

    def join(self, other: "LogitBias") -> None:
        """See `Constraint.join`."""
        self._bias = torch.cat([self._bias, other._bias])
        self.may_forbid = self.may_forbid or other.may_forbid

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `Constraint.select_rows`."""
        self._bias = self._bias[rows]
