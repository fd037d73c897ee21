"""What every drafter offers to the decoding loop."""

from typing import Protocol

import torch
from torch import Tensor

from mtad.models.row_state import RowState
from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree


class Drafter(Protocol):
    """Turns the committed state into a batch of token trees.

    Attributes:
        gamma: Depth of the trees.
        num_nodes: Node slots of the trees.
        num_slots: Cache slots the drafter needs behind the committed tokens.
    """

    gamma: int
    num_nodes: int
    num_slots: int

    @property
    def runner(self) -> RowState | None:
        """What the drafter keeps of the rows: the auxiliary model's cache, their text, or None for nothing."""
        ...

    def draft(self, previous: Tensor, pending: Tensor, rows: RowControls) -> TokenTree:
        """Draft behind the pending token.

        Args:
            previous: Last but one committed token, `[batch]` int64.
            pending: Last committed token, `[batch]` int64.
            rows: Settings and positions of the rows.
        """
        ...

    def keep_path(self, acceptance: Acceptance, active: Tensor) -> None:
        """Commit the accepted path in the drafter's own cache; `active` is `[batch]` bool."""
        ...


class NoDrafter:
    """Drafts nothing, which makes the loop plain autoregressive decoding."""

    runner: RowState | None = None
    gamma = 0
    num_nodes = 0
    num_slots = 0

    def draft(self, previous: Tensor, pending: Tensor, rows: RowControls) -> TokenTree:
        """A tree without nodes."""
        empty = pending.new_empty(len(pending), 0)
        nothing = empty.bool()
        return TokenTree(
            tokens=empty,
            parents=empty,
            depths=empty[0],
            joint_draft_log_probs=empty.float(),
            ancestors=empty,
            winner=torch.full_like(pending, -1),
            valid=nothing,
            carried=nothing,
            depth=0,
        )

    def keep_path(self, acceptance: Acceptance, active: Tensor) -> None:
        """Nothing to keep."""
