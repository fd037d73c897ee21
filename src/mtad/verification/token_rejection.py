"""Token-by-token rejection: plain speculative sampling."""

import torch
from torch import Tensor

from mtad.sampling import Stream, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, path_to
from mtad.verification.base import draw_next_token, joint_target_log_probs


class TokenRejectionVerifier:
    """Accepts each token with probability min(1, p/q), else redraws from max(p - q, 0).

    Leviathan et al. 2023, algorithm 1; Chen et al. 2023. Lossless: the output follows the target's warped law.
    Needs a chain drawn from the distributions it carries; a beam-searched chain would bias the test.
    """

    is_lossless = True
    needs_distributions = True
    needs_chain = True

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        assert tree.draft_log_probs is not None, "token rejection needs the draft's distributions"
        gamma = tree.num_nodes
        tokens = tree.tokens.unsqueeze(-1)
        log_p = target_log_probs[:, :gamma].gather(-1, tokens).squeeze(-1)
        log_q = tree.draft_log_probs.gather(-1, tokens).squeeze(-1)
        draws = uniform(rows, Stream.ACCEPT, 0, gamma)
        accepted = tree.valid & (draws.log() < log_p - log_q)
        num_accepted = accepted.long().cumprod(1).sum(1)
        path_nodes, _ = path_to(tree, num_accepted - 1)
        joint = joint_target_log_probs(tree, target_log_probs) - tree.joint_draft_log_probs
        last = (num_accepted - 1).clamp(min=0).unsqueeze(1)
        return Acceptance(
            path_nodes=path_nodes,
            num_accepted=num_accepted,
            next_tokens=draw_next_token(_residual(tree, target_log_probs, num_accepted), rows),
            joint_log_ratio=torch.where(num_accepted > 0, joint.gather(1, last).squeeze(1), 0.0),
        )


def _residual(tree: TokenTree, target_log_probs: Tensor, num_accepted: Tensor) -> Tensor:
    """Log of max(p - q, 0) after the first rejection, or of p where the draft ended first, `[batch, vocab]`."""
    assert tree.draft_log_probs is not None
    batch = first_numbers(len(num_accepted), num_accepted.device)
    target = target_log_probs[batch, num_accepted]
    first_refused = num_accepted.clamp(max=tree.num_nodes - 1)
    was_rejected = (num_accepted < tree.num_nodes) & tree.valid[batch, first_refused]
    draft = tree.draft_log_probs[batch, first_refused]
    difference = (target.exp() - draft.exp()).clamp(min=0)
    has_mass = (difference.sum(1, keepdim=True) > 0) & was_rejected.unsqueeze(1)
    return torch.where(has_mass, difference.log(), target)
