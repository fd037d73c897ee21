"""The committed tokens of every row, on the device."""

import torch
from torch import Tensor


class TokenHistory:
    """Remembers the committed tokens of a batch; what looks back at the text keeps one.

    It is allocated, filled and thinned by the decoder exactly as a model runner is.

    Args:
        device: Where the tokens live.

    Attributes:
        tokens: `[batch, capacity]` int64; whatever lies behind a row's length has no meaning.
        lengths: Committed tokens of each row, `[batch]` int64.
    """

    tokens: Tensor
    lengths: Tensor

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def allocate(self, batch_size: int, capacity: int) -> None:
        """Make room for `batch_size` rows of `capacity` tokens; forgets what was there."""
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
        self.lengths = lengths + 1

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

    def note_longest(self, longest: int) -> None:
        """Nothing here depends on the longest row."""
