"""An exact fake model: logits are looked up by the last tokens a query can see."""

import torch
from torch import Tensor

from mtad.models.forward import ForwardBatch
from mtad.models.runner import ModelRunner


class TableRunner(ModelRunner):
    """A Markov model behind the same cache, slots and visibility as a real one.

    Each slot remembers the token and position written there. A query's context is read back through its
    visibility, so a wrong mask, slot or compaction changes the logits.

    Args:
        table: Logits for every context of `order` tokens, `[vocab] * (order + 1)`, oldest token first. Contexts
            that reach before the first token are read as if padded with token 0.

    `first_layers(n)` sees the last n tokens only and has the mean logits over those before.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.order = table.dim() - 1
        self.vocab_size = table.shape[-1]
        self.device = table.device
        self.max_positions = None
        self.num_layers = self.order
        self.num_calls = 0
        self._all_tokens = torch.zeros(0, 0, dtype=torch.int64, device=table.device)
        self._all_positions = self._tokens = self._positions = self._all_tokens

    def forward(self, batch: ForwardBatch) -> Tensor:
        """See `ModelRunner.forward`."""
        self.num_calls += 1
        rows = torch.arange(len(batch.tokens), device=self.device).unsqueeze(1)
        self._tokens[rows, batch.slots] = batch.tokens
        self._positions[rows, batch.slots] = batch.positions
        visible = batch.visible_slots()
        index = [self._seen_token(batch, visible, back) for back in range(self.order - 1, 0, -1)]
        return self.table[(*index, batch.tokens)][:, -batch.num_logits :]

    def first_layers(self, count: int) -> "TableRunner":
        """See `ModelRunner.first_layers`."""
        older = tuple(range(self.order - count))
        return TableRunner(self.table.mean(older) if older else self.table)

    def _seen_token(self, batch: ForwardBatch, visible: Tensor, back: int) -> Tensor:
        """The visible token `back` positions before each query, 0 before the start."""
        wanted = (batch.positions - back).unsqueeze(-1)
        stored = self._positions[:, : batch.num_slots].unsqueeze(1)
        match = visible & (stored == wanted) & (wanted >= 0)
        is_padding = batch.slots == self.num_slots - 1
        is_exact = match.sum(-1) == (wanted >= 0).squeeze(-1)
        assert bool((is_exact | is_padding).all()), "a position of the context is not visible exactly once"
        tokens = self._tokens[:, : batch.num_slots].unsqueeze(1)
        return torch.where(match, tokens, 0).sum(-1)

    def _allocate_slots(self, batch_size: int, num_slots: int) -> None:
        self._all_tokens = torch.zeros(batch_size, num_slots, dtype=torch.int64, device=self.device)
        self._all_positions = torch.full((batch_size, num_slots), -1, dtype=torch.int64, device=self.device)
        self._use_slots(0, batch_size)

    def _use_slots(self, first_row: int, num_rows: int) -> None:
        self._tokens = self._all_tokens[first_row : first_row + num_rows]
        self._positions = self._all_positions[first_row : first_row + num_rows]

    def _select_slots(self, rows: Tensor) -> None:
        self._all_tokens, self._all_positions = self._tokens[rows], self._positions[rows]
        self._use_slots(0, len(rows))

    def _move_slots(self, sources: Tensor, targets: Tensor) -> None:
        rows = torch.arange(len(sources), device=self.device).unsqueeze(1)
        self._tokens[rows, targets] = self._tokens[rows, sources]
        self._positions[rows, targets] = self._positions[rows, sources]

    def _copy_slots(self, source: int, target: int, num_slots: int) -> None:
        for tensor in (self._all_tokens, self._all_positions):
            tensor[target, :num_slots] = tensor[source, :num_slots]

    def _swap_slots(self, first: int, second: int, num_slots: int) -> None:
        for tensor in (self._all_tokens, self._all_positions):
            tensor[[first, second], :num_slots] = tensor[[second, first], :num_slots]
