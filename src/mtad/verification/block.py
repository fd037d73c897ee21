"""Block verification: joint acceptance of a sampled chain, without loss."""

import torch
from torch import Tensor

from mtad.sampling import Stream, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree
from mtad.verification.base import keep_and_draw
from mtad.verification.paths import joint_log_ratio_at


class BlockVerifier:
    """Accepts prefixes of a sampled chain jointly (Sun et al., ICLR 2025, algorithm 2).

    With r_i the ratio of target to draft at the i-th drafted token, w_0 = 1 and w_i = min(1, w_(i-1) r_i). After
    prefix i let m_i be the sum over tokens of max(w_i * target - draft, 0). The prefix passes with probability
    m_i / (m_i + 1 - w_i), the whole chain with w_gamma; the longest prefix that passes is kept, even if a shorter
    one fails. The next token follows max(w_i * target - draft, 0), after the whole chain the target.

    Lossless: the output follows the target's warped law. No lossless rule that draws from one chain keeps more
    tokens on average (theorem 2 there), token-by-token rejection included. Needs a chain drawn from the
    distributions it carries.
    """

    is_lossless = True
    needs_distributions = True
    needs_chain = True

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        weights = _prefix_weights(tree, target_log_probs)
        residual = _residual(tree, target_log_probs, weights)
        mass = residual.sum(-1)
        headroom = mass + 1 - weights
        # Both are zero only where target and draft agree; any later prefix then passes for sure.
        odds = torch.where(headroom > 0, mass / headroom, 1.0)[:, 1:]
        lengths = first_numbers(tree.num_nodes, odds.device, 1)
        passes = tree.valid.cumprod(1).bool() & (uniform(rows, Stream.ACCEPT, 0, tree.num_nodes) < odds)
        num_accepted = torch.where(passes, lengths, 0).amax(1)
        after = _after(residual, target_log_probs, num_accepted)
        ratio = joint_log_ratio_at(tree, target_log_probs, num_accepted - 1)
        return keep_and_draw(tree, num_accepted - 1, after, rows, joint_log_ratio=ratio)


def _prefix_weights(tree: TokenTree, target_log_probs: Tensor) -> Tensor:
    """w_0 to w_gamma in [0, 1], linear, `[batch, 1 + gamma]`; 0 from the first invalid node on."""
    assert tree.draft_log_probs is not None, "block verification needs the draft's distributions"
    tokens = tree.tokens.unsqueeze(-1)
    log_p = target_log_probs[:, :-1].gather(-1, tokens).squeeze(-1)
    log_q = tree.draft_log_probs.gather(-1, tokens).squeeze(-1)
    ratios = torch.where(tree.valid, (log_p - log_q).exp(), 0.0)
    weights = [torch.ones_like(ratios[:, 0])]
    for ratio in ratios.unbind(1):
        # A token of draft probability zero has an infinite ratio, and zero times that is no number.
        grown = torch.where(weights[-1] > 0, weights[-1] * ratio, 0.0)
        weights.append(grown.clamp(max=1))
    return torch.stack(weights, 1)


def _residual(tree: TokenTree, target_log_probs: Tensor, weights: Tensor) -> Tensor:
    """max(w_i * target - draft, 0) after every prefix, linear, `[batch, 1 + gamma, vocab]`.

    Where no token follows, behind the last valid node, the draft counts as zero: what remains is the target.
    """
    assert tree.draft_log_probs is not None
    draft = torch.where(tree.valid.unsqueeze(-1), tree.draft_log_probs.exp(), 0.0)
    draft = torch.nn.functional.pad(draft, (0, 0, 0, 1))
    return (weights.unsqueeze(-1) * target_log_probs.exp() - draft).clamp(min=0)


def _after(residual: Tensor, target_log_probs: Tensor, num_accepted: Tensor) -> Tensor:
    """Log of the residual after the kept prefix, of the target where rounding left none, `[batch, vocab]`."""
    batch = first_numbers(len(num_accepted), num_accepted.device)
    kept = residual[batch, num_accepted]
    has_mass = kept.sum(1, keepdim=True) > 0
    return torch.where(has_mass, kept.log(), target_log_probs[batch, num_accepted])
