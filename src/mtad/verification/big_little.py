"""Fallback and rollback: a small model writes while it is sure, a large one corrects it."""

import math

from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree
from mtad.verification.base import keep_node
from mtad.verification.paths import joint_log_ratio_at, step_log_probs


class BigLittleVerifier:
    """Falls back where the draft is unsure, rolls back where the target disagrees (BiLD, Kim et al., NeurIPS 2023).

    Fallback: the draft ends before the first place where the draft's largest probability is below `fallback`.
    Rollback: of what is left, the draft ends before the first token whose cross entropy against the target,
    -log p, exceeds `rollback`. One more token is drawn from the target. Both are judged on warped distributions, so
    a token that the target's filters leave out is always rolled back. Shapes stay fixed: all gamma tokens are
    drafted, and those behind the fallback do not count.

    Lossy. Guarantee: every kept token has -log p <= `rollback`, and was drafted where the draft's largest
    probability was at least `fallback`.

    Args:
        fallback: Confidence the draft must have to go on, in [0, 1].
        rollback: Largest -log p of a kept token, natural log, at least 0.
    """

    is_lossless = False
    needs_distributions = True
    needs_chain = True

    def __init__(self, fallback: float, rollback: float) -> None:
        self.log_fallback = math.log(fallback) if fallback > 0 else -math.inf
        self.rollback = rollback

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        assert tree.draft_log_probs is not None, "the fallback needs the draft's distributions"
        is_sure = tree.draft_log_probs.amax(-1) >= self.log_fallback
        is_agreed = -step_log_probs(tree, target_log_probs) <= self.rollback
        num_accepted = (tree.valid & is_sure & is_agreed).long().cumprod(1).sum(1)
        node = num_accepted - 1
        ratio = joint_log_ratio_at(tree, target_log_probs, node)
        return keep_node(tree, node, target_log_probs, rows, joint_log_ratio=ratio)
