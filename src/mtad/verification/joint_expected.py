"""The joint rule measured against what the target itself would be expected to draw."""

import torch
from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, ancestor_matrix
from mtad.verification.joint import keep_deepest_passing


class JointExpectedVerifier:
    """Keeps the deepest path with log P(path) - E > log tau, E the target's expected log-likelihood along the path.

    E sums, over the places of the path, the expected log-probability of a token that the target draws there, the
    negative entropy of its warped law. So a block passes when it is at most 1/tau less likely than the target's own
    draws are on average in the same contexts; a likely beginning pays for a less likely end. This is Medusa's
    typical acceptance (Cai et al. 2024) for whole paths instead of tokens. The draft's probabilities play no part,
    so a bad draft cannot lower the bar, and a sure one cannot raise it. A rule of this project.

    Lossy by design. Guarantee per block: P(kept path) > tau * exp(E), whatever was drafted.
    """

    is_lossless = False
    needs_distributions = False
    needs_chain = False

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        return keep_deepest_passing(tree, expected_log_probs(tree, target_log_probs), target_log_probs, rows)


def expected_log_probs(tree: TokenTree, target_log_probs: Tensor) -> Tensor:
    """Sum of the target's negative entropies at the places of each node's path, natural log, `[batch, nodes]`.

    Carried nodes add nothing.
    """
    finite = target_log_probs.clamp(min=torch.finfo(target_log_probs.dtype).min)
    expected = (target_log_probs.exp() * finite).sum(-1)
    step = torch.where(tree.carried, 0.0, expected.gather(1, tree.parents + 1))
    return torch.where(ancestor_matrix(tree.ancestors), step.unsqueeze(1), 0.0).sum(-1)
