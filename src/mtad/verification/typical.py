"""Typical acceptance: tokens that are not too unlikely for the target's certainty."""

import torch
from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree
from mtad.verification.base import keep_node
from mtad.verification.paths import deepest_node, joint_log_ratio_at, step_log_probs


class TypicalVerifier:
    """Keeps tokens with p > min(epsilon, delta * exp(-entropy)) under the target (Medusa, Cai et al. 2024, 2.3.1).

    The entropy, in nats, is that of the target's warped distribution at the token's place. The longest path whose
    nodes all pass is kept; among equally long ones the likeliest. Greedy rows keep the target's argmax only,
    as the method does at temperature 0. One more token is drawn from the target.

    Lossy. Guarantee: every kept token has p > min(epsilon, delta * exp(-entropy)), so a path of n tokens has
    P > min(epsilon, delta / vocabulary)^n.

    Args:
        epsilon: Bound for uncertain places, in (0, 1].
        delta: Share of exp(-entropy) asked for elsewhere, in (0, 1]; the authors advise the root of epsilon.
    """

    is_lossless = False
    needs_distributions = False
    needs_chain = False

    def __init__(self, epsilon: float, delta: float) -> None:
        self.epsilon = epsilon
        self.delta = delta

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        log_p = step_log_probs(tree, target_log_probs)
        bounds = self._bounds(target_log_probs).gather(1, tree.parents + 1)
        is_best = tree.tokens == target_log_probs.argmax(-1).gather(1, tree.parents + 1)
        passes = torch.where(rows.is_greedy.unsqueeze(1), is_best, log_p.exp() > bounds)
        node = deepest_node(tree, passes, target_log_probs)
        ratio = joint_log_ratio_at(tree, target_log_probs, node)
        return keep_node(tree, node, target_log_probs, rows, joint_log_ratio=ratio)

    def _bounds(self, target_log_probs: Tensor) -> Tensor:
        """Probability that a token after the root and after every node must exceed, `[batch, 1 + nodes]`."""
        entropy: Tensor = torch.special.entr(target_log_probs.exp()).sum(-1)
        return (self.delta * (-entropy).exp()).clamp(max=self.epsilon)
