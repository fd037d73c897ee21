"""The committed tokens of every row, on the device."""

from collections.abc import Hashable

import torch
from torch import Tensor

from mtad.models.graphs import places_of, settle


class TokenHistory:
    """Remembers the committed tokens of a batch; what looks back at the text keeps one.

    It is allocated, filled and thinned by the decoder exactly as a model runner is.

    Args:
        device: Where the tokens live.

    Attributes:
        tokens: `[batch, capacity]` int64; whatever lies behind a row's length has no meaning.
        lengths: Committed tokens of each row, `[batch]` int64.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.tokens = torch.zeros(0, 0, dtype=torch.int64, device=self.device)
        self.lengths = self.tokens[:, 0:0].sum(1)

    @property
    def cache_bytes(self) -> int:
        """See `RowState.cache_bytes`."""
        return self.tokens.nbytes

    def allocate(self, batch_size: int, capacity: int) -> None:
        """Make room for `batch_size` rows of `capacity` tokens, where it was if that is possible; forgets them."""
        if self.tokens.shape[0] == batch_size and capacity < self.tokens.shape[1] <= 2 * (capacity + 1):
            return
        # One more slot is a waste bin for the padding of ragged appends.
        self.tokens = torch.zeros(batch_size, capacity + 1, dtype=torch.int64, device=self.device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=self.device)

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> None:
        """Start with the prompts.

        Args:
            token_ids: Right-padded prompts, `[batch, tokens]` int64.
            lengths: Tokens of each prompt but its last, `[batch]` int64, as runners are given them.
        """
        self.tokens[:, : token_ids.shape[1]] = token_ids
        self.lengths = settle(self.lengths, lengths + 1)

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """Add the first `counts` tokens of every active row.

        Args:
            tokens: `[batch, longest]` int64.
            counts: Tokens to add, `[batch]` int64.
            active: `[batch]` bool; the other rows stay as they are.
        """
        order = torch.arange(tokens.shape[1], device=tokens.device)
        is_new = (order < counts.unsqueeze(1)) & active.unsqueeze(1)
        slots = torch.where(is_new, self.lengths.unsqueeze(1) + order, self.tokens.shape[1] - 1)
        self.tokens.scatter_(1, slots, tokens)
        self.lengths += torch.where(active, counts, 0)

    def select_rows(self, rows: Tensor) -> None:
        """Keep only the named rows, in that order, `[kept]` int64."""
        self.tokens, self.lengths = self.tokens[rows], self.lengths[rows]

    def fix_shapes(self) -> None:
        """Shapes are fixed here."""

    def layout(self) -> Hashable:
        """See `RowState.layout`."""
        return places_of([self.tokens, self.lengths])

    def note_longest(self, longest: int) -> None:
        """Nothing here depends on the longest row."""
