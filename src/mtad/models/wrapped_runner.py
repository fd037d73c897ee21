"""A model runner that changes what goes into another one, or what comes out."""

from collections.abc import Hashable

import torch
from torch import Tensor

from mtad.models.forward import ForwardBatch
from mtad.models.runner import ModelRunner


class WrappedRunner(ModelRunner):
    """Keeps its rows in the cache of an inner runner, which nobody else may use meanwhile.

    Args:
        inner: The runner that computes.
        vocab_size: Width of the logits; the inner runner's when None.
    """

    def __init__(self, inner: ModelRunner, *, vocab_size: int | None = None) -> None:
        self.inner = inner
        self.vocab_size = inner.vocab_size if vocab_size is None else vocab_size
        self.device: torch.device = inner.device
        self.max_positions = inner.max_positions
        self.num_layers = inner.num_layers

    @property
    def can_be_captured(self) -> bool:
        """See `ModelRunner.can_be_captured`."""
        return self.inner.can_be_captured

    @property
    def cache_bytes(self) -> int:
        """See `ModelRunner.cache_bytes`."""
        return self.inner.cache_bytes

    def layout(self) -> tuple[Hashable, ...]:
        """See `RowState.layout`."""
        return (*super().layout(), *self.inner.layout())

    def forward(self, batch: ForwardBatch) -> Tensor:
        """See `ModelRunner.forward`."""
        return self.inner.forward(batch)

    def select_rows(self, rows: Tensor) -> None:
        """See `ModelRunner.select_rows`."""
        self.inner.select_rows(rows)
        self.lengths = self.lengths[rows]

    def _allocate_slots(self, batch_size: int, num_slots: int) -> None:
        self.inner.allocate(batch_size, num_slots - 1)

    def _move_slots(self, sources: Tensor, targets: Tensor) -> None:
        self.inner._move_slots(sources, targets)
