"""A model runner that changes what goes into another one, or what comes out."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from mtad.models.forward import ForwardBatch
from mtad.models.runner import ModelRunner


class WrappedRunner(ModelRunner):
    """Keeps its rows in the cache of an inner runner; whoever uses that too uses the same rows.

    Args:
        inner: The runner that computes.
        vocab_size: Width of the logits; the inner runner's when None.
    """

    def __init__(self, inner: ModelRunner, *, vocab_size: int | None = None) -> None:
        self.inner = inner
        self.use = inner.use
        self.vocab_size = inner.vocab_size if vocab_size is None else vocab_size
        self.device: torch.device = inner.device
        self.max_positions = inner.max_positions
        self.max_slots = inner.max_slots
        self.num_layers = inner.num_layers

    @property
    def storage(self) -> ModelRunner:
        """See `ModelRunner.storage`."""
        return self.inner.storage

    @property
    def can_be_captured(self) -> bool:
        """See `ModelRunner.can_be_captured`."""
        return self.inner.can_be_captured

    @property
    def cache_bytes(self) -> int:
        """See `ModelRunner.cache_bytes`."""
        return self.inner.cache_bytes

    @property
    def slot_bytes(self) -> int:
        """See `RowState.slot_bytes`."""
        return self.inner.slot_bytes

    def layout(self) -> tuple[Hashable, ...]:
        """See `RowState.layout`."""
        return (*super().layout(), *self.inner.layout())

    def forward(self, batch: ForwardBatch) -> Tensor:
        """See `ModelRunner.forward`."""
        return self.inner.forward(batch)

    def allocate(self, batch_size: int, capacity: int) -> None:
        """See `ModelRunner.allocate`."""
        self.inner.allocate(batch_size, capacity)

    def release(self) -> None:
        """See `ModelRunner.release`."""
        self.inner.release()

    def _allocate_slots(self, *args: Any) -> None:
        self.inner._allocate_slots(*args)

    def _use_slots(self, *args: Any) -> None:
        self.inner._use_slots(*args)

    def _select_slots(self, *args: Any) -> None:
        self.inner._select_slots(*args)

    def _move_slots(self, *args: Any) -> None:
        self.inner._move_slots(*args)

    def _copy_slots(self, *args: Any) -> None:
        self.inner._copy_slots(*args)

    def _swap_slots(self, *args: Any) -> None:
        self.inner._swap_slots(*args)
