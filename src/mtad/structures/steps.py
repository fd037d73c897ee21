"""What one iteration of the loop saw and decided."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One iteration of a batch: all that a rule was told and what it said, so that another rule can be asked.

    Attributes:
        row_ids: Place of each row among the prompts of the batch, `[batch]` int64; stays when other rows leave.
        active: Rows whose answer has not ended, `[batch]` bool; what the others hold has no meaning.
        rows: Settings and positions of the rows when the iteration started.
        pending: Last committed token, `[batch]` int64.
        tree: The draft.
        logits: The target's unwarped scores after the pending token and each node, `[batch, 1 + nodes, vocab]`.
        target_log_probs: The warped natural logs of the same, as the rule saw them.
        acceptance: The decision.
    """

    row_ids: Tensor
    active: Tensor
    rows: RowControls
    pending: Tensor
    tree: TokenTree
    logits: Tensor
    target_log_probs: Tensor
    acceptance: Acceptance


class StepObserver(Protocol):
    """Is shown every iteration of the loop, and must not change what it is shown."""

    def observe(self, step: StepRecord) -> None:
        """Look at one iteration, before its path is kept."""
        ...
