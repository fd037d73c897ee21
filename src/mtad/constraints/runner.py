"""An auxiliary model under the constraints of the rows it drafts for."""

import torch
from torch import Tensor

from mtad.constraints.base import Constraints
from mtad.constraints.places import Places
from mtad.models.forward import ForwardBatch
from mtad.models.runner import ModelRunner


class ConstrainedRunner(ModelRunner):
    """Changes the logits of drafting calls by the path of each node; what a drafter asks for is not changed.

    A place whose every allowed token the draft cannot say keeps the draft's own logits: the target refuses what is
    drafted there.

    Args:
        inner: The auxiliary model; used by nobody else meanwhile.
        constraints: Those of the batch.
    """

    def __init__(self, inner: ModelRunner, constraints: Constraints) -> None:
        self.inner = inner
        self.constraints = constraints
        self.vocab_size = inner.vocab_size
        self.device = inner.device
        self.max_positions = inner.max_positions
        self.num_layers = inner.num_layers
        self._tokens = torch.zeros(0, 0, dtype=torch.int64, device=inner.device)

    def score_root(self, previous: Tensor, pending: Tensor) -> Tensor:
        """See `ModelRunner.score_root`."""
        logits = super().score_root(previous, pending).unsqueeze(1)
        places = Places.root(pending)
        self._tokens = places.tokens
        return self.constraints.apply(logits, places)[0].squeeze(1)

    def score_level(self, tokens: Tensor, ancestors: Tensor, first_node: int, depth: int) -> Tensor:
        """See `ModelRunner.score_level`."""
        logits = super().score_level(tokens, ancestors, first_node, depth)
        self._tokens = torch.cat([self._tokens[:, :first_node], tokens], 1)
        return self.constraints.apply(logits, Places(self._tokens, ancestors))[0]

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
