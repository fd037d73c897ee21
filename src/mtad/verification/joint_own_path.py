"""The joint rule with every node measured against its own path."""

from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree
from mtad.verification.joint import keep_deepest_passing


class JointOwnPathVerifier:
    """Keeps the deepest path with log P(path) - log Q(the same path) > log tau.

    `joint` measures every node against the winner beam; here each node is measured against the draft's probability of
    its own path, which is lower for the losers, so they pass more easily and more is kept. Equal to `joint` on chains.
    Deterministic drafts of any shape fit, since no winner is needed.

    Lossy by design. Guarantee per block: P(kept path) > tau * Q(kept path). It bounds how far the target disagrees
    with the draft, not how unlikely the path is: one the draft itself found unlikely may pass.
    """

    is_lossless = False
    needs_distributions = False
    needs_chain = False

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        return keep_deepest_passing(tree, tree.joint_draft_log_probs, target_log_probs, rows)
