"""Recursive rejection over siblings, from the root down."""

import torch
from torch import Tensor

from mtad.sampling import Stream, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree
from mtad.verification.base import keep_and_draw
from mtad.verification.paths import joint_log_ratio_at
from mtad.verification.siblings import first_of, level_starts, offer_children


class TreeRejectionVerifier:
    """Offers the children of the last kept node one by one; the first accepted one is kept and goes on.

    A child x is accepted with min(1, p(x)/q(x)); a rejection leaves p <- norm(max(p - q, 0)) for the next sibling.
    When all are rejected the next token comes from what is left of p. Siblings drawn with replacement share q
    (SpecInfer's multi-step speculative sampling, Miao et al., ASPLOS 2024); without replacement q loses the tokens
    drawn before (recursive rejection sampling, Jeon et al. 2024; MCSD, Yang et al. 2024).

    Lossless: the output follows the target's warped law. One child per node is `token_rejection`. Needs a tree of
    regular branching whose siblings were drawn from the distributions it carries.
    """

    is_lossless = True
    needs_distributions = True
    needs_chain = False

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        assert tree.draft_log_probs is not None, "tree rejection needs the draft's distributions"
        assert tree.branching is not None, "tree rejection needs a tree of regular branching"
        draws = uniform(rows, Stream.ACCEPT, 0, tree.num_nodes)
        batch = first_numbers(tree.batch_size, draws.device)
        node = torch.full_like(tree.winner, -1)
        next_law = target_log_probs[:, 0].exp()
        alive = torch.ones_like(node, dtype=torch.bool)
        first_above = -1
        for first_node, count in zip(level_starts(tree.branching), tree.branching, strict=False):
            place = (node - first_above).clamp(min=0)
            children = first_node + place.unsqueeze(1) * count + first_numbers(count, node.device)
            offers = offer_children(
                next_law.unsqueeze(1),
                torch.ones_like(next_law[:, :1]),
                tree.draft_log_probs[batch, children[:, 0]].exp().unsqueeze(1),
                tree.tokens.gather(1, children).unsqueeze(1),
                tree.valid.gather(1, children).unsqueeze(1),
                has_replacement=tree.has_replacement,
            )
            choice, is_accepted = first_of(draws.gather(1, children) < offers.odds[:, 0])
            child = children.gather(1, choice.unsqueeze(1)).squeeze(1)
            after_child = target_log_probs[batch, child + 1].exp()
            law = torch.where(is_accepted.unsqueeze(1), after_child, offers.residual[:, 0])
            next_law = torch.where(alive.unsqueeze(1), law, next_law)
            alive = alive & is_accepted
            node = torch.where(alive, child, node)
            first_above = first_node
        ratio = joint_log_ratio_at(tree, target_log_probs, node)
        return keep_and_draw(tree, node, next_law.log(), rows, joint_log_ratio=ratio)
