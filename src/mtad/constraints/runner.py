"""An auxiliary model under the constraints of the rows it drafts for."""

import torch
from torch import Tensor

from mtad.constraints.base import Constraints
from mtad.constraints.places import Places
from mtad.models.runner import ModelRunner
from mtad.models.wrapped_runner import WrappedRunner


class ConstrainedRunner(WrappedRunner):
    """Changes the logits of drafting calls by the path of each node; what a drafter asks for is not changed.

    A place whose every allowed token the draft cannot say keeps the draft's own logits: the target refuses what is
    drafted there.

    Args:
        inner: The auxiliary model; used by nobody else meanwhile.
        constraints: Those of the batch.
    """

    def __init__(self, inner: ModelRunner, constraints: Constraints) -> None:
        super().__init__(inner)
        self.constraints = constraints
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
