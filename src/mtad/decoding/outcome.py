"""What one iteration brings to the host."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """What one iteration added to one row.

    Attributes:
        tokens: New token ids, kept draft first; may be empty for methods that answer at the end.
        num_drafted: Leading tokens that came from the draft.
        log_probs: Natural log-probability of each token under the unwarped temperature-1 target.
        joint_log_ratio: log P - log Q of the kept path, 0 when nothing was kept.
        target_calls: Decode calls of the target the row took part in.
    """

    tokens: list[int]
    num_drafted: int
    log_probs: list[float]
    joint_log_ratio: float
    target_calls: int


@dataclass(slots=True)
class PhaseTimes:
    """Wall seconds of the whole batch by phase; dispatch time only on an asynchronous device."""

    draft_s: float = 0.0
    verify_s: float = 0.0


def undrafted(tokens: list[int], log_probs: list[float], target_calls: int) -> RowOutcome:
    """The outcome of a method without a draft."""
    return RowOutcome(tokens=tokens, num_drafted=0, log_probs=log_probs, joint_log_ratio=0.0, target_calls=target_calls)


def unwarped_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Temperature-1 natural log-probability of `tokens`.

    Args:
        logits: `[batch, count, vocab]`.
        tokens: `[batch, count]` int64.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    return scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scores.logsumexp(-1)
