"""The distribution that tree drafters pick children from."""

import torch
from torch import Tensor

from mtad.sampling import warp_logits
from mtad.structures.between_calls import between_calls
from mtad.structures.rows import RowControls


@between_calls
def ranking_log_probs(logits: Tensor, rows: RowControls) -> Tensor:
    """The draft's warped distribution; in greedy rows the unfiltered one.

    A greedy row's warp may be one-hot (`RowControls.from_settings`), which would leave one child to every node.

    Args:
        logits: `[batch, nodes, vocab]`, any float type.
        rows: Settings of the rows.

    Returns:
        Natural log, normalised, `[batch, nodes, vocab]` float32 (float64 for float64 logits).
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    return torch.where(rows.is_greedy.view(-1, 1, 1), scores.log_softmax(-1), warp_logits(logits, rows))
