"""The committed tokens of every row, on the device."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mtad.models.graphs import places_of


class TokenHistory:
    """Remembers the committed tokens of a batch; what looks back at the text keeps one.

    It is allocated, filled and thinned by the decoder exactly as a model runner is.

    Args:
        device: Where the tokens live.

    Attributes:
        tokens: Of the rows in use, `[batch, capacity]` int64; whatever lies behind a row's length has no meaning.
        lengths: Committed tokens of each row in use, `[batch]` int64.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.tokens = torch.zeros(0, 0, dtype=torch.int64, device=self.device)
        self.lengths = self.tokens[:, 0:0].sum(1)
        self._all_tokens, self._all_lengths = self.tokens, self.lengths

    @property
    def storage(self) -> "TokenHistory":
        """See `RowState.storage`."""
        return self

    @property
    def cache_bytes(self) -> int:
        """See `RowState.cache_bytes`."""
        return self._all_tokens.nbytes

    @property
    def slot_bytes(self) -> int:
        """See `RowState.slot_bytes`."""
        return self._all_tokens.element_size()

    def allocate(self, batch_size: int, capacity: int) -> None:
        """Make room for `batch_size` rows of `capacity` tokens, where it was if that is possible; forgets them."""
        rows, slots = self._all_tokens.shape
        if rows != batch_size or not capacity < slots <= 2 * (capacity + 1):
            # One more slot is a waste bin for the padding of ragged appends.
            self._all_tokens = torch.zeros(batch_size, capacity + 1, dtype=torch.int64, device=self.device)
            # A row that nobody has begun may pad a batch, and whoever looks back finds at least one token.
            self._all_lengths = torch.ones(batch_size, dtype=torch.int64, device=self.device)
        self.use_rows(0, batch_size, 0)

    def use_rows(self, first_row: int, num_rows: int, longest: int) -> None:
        """See `RowState.use_rows`."""
        self.tokens = self._all_tokens[first_row : first_row + num_rows]
        self.lengths = self._all_lengths[first_row : first_row + num_rows]

    def begin_row(self, row: int, prompt: Sequence[int], num_cached: int) -> None:
        """See `RowState.begin_row`; the whole prompt is taken at once."""
        self._all_tokens[row, : len(prompt)] = torch.tensor(prompt, device=self.device)
        self._all_lengths[row] = len(prompt)

    def prefill_chunk(self, token_ids: Tensor, counts: Tensor, longest: int) -> None:
        """The prompt is there already."""

    def pass_over(self, tokens: Tensor, active: Tensor) -> None:
        """See `RowState.pass_over`; a text misses nothing."""
        self.append(tokens.unsqueeze(1), torch.ones_like(self.lengths), active)

    def refeed(self, token_ids: Tensor, counts: Tensor, longest: int) -> None:
        """The text is complete."""

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """The prompt comes with `begin_row`."""

    def swap_rows(self, first: int, second: int, num_tokens: int) -> None:
        """See `RowState.swap_rows`."""
        for tensor in (self._all_tokens, self._all_lengths):
            tensor[[first, second]] = tensor[[second, first]]

    def prefill(self, token_ids: Tensor, lengths: Tensor, num_shared: int = 0) -> None:
        """Start with the prompts.

        Args:
            token_ids: Right-padded prompts, `[batch, tokens]` int64.
            lengths: Tokens of each prompt but its last, `[batch]` int64, as runners are given them.
            num_shared: Nothing is saved by it here.
        """
        self.tokens[:, : token_ids.shape[1]] = token_ids
        self.lengths.copy_(lengths + 1)

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
        self._all_tokens, self._all_lengths = self.tokens[rows], self.lengths[rows]
        self.use_rows(0, len(rows), 0)

    def fix_shapes(self) -> None:
        """Shapes are fixed here."""

    def layout(self) -> Hashable:
        """See `RowState.layout`."""
        return places_of([self.tokens, self.lengths])

    def note_longest(self, longest: int) -> None:
        """Nothing here depends on the longest row."""
