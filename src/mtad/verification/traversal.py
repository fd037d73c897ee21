"""Traversal verification: from the leaves to the root, whole paths at a time."""

import torch
from torch import Tensor

from mtad.sampling import Stream, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, ancestor_matrix
from mtad.verification.base import keep_and_draw
from mtad.verification.paths import joint_log_ratio_at
from mtad.verification.siblings import Offers, first_of, level_starts, offer_children


class TraversalVerifier:
    """Judges whole paths, deepest first, so that a good continuation can save a doubtful beginning.

    Weng et al., NeurIPS 2025 (arXiv 2505.12398), algorithm 3. Nodes are visited children before parents, siblings in
    order; the first one accepted ends the kept path. The root has weight 1, a child x of a node of weight w has
    min(1, w p(x)/q(x)). A node whose subtree is rejected leaves its parent p <- norm(max(w p - q, 0)) and
    w <- s / (s + 1 - w), s the sum before the norm; later siblings, and in the end the parent itself, are judged with
    these. The next token comes from what is left of p after the kept node.

    Every weight presumes that all nodes visited before were rejected, so none depends on a draw: the weights are
    computed level by level from the root, and the first node in visiting order whose draw lies below its own is kept.

    Lossless: the output follows the target's warped law. Expected length is at least that of `tree_rejection` on
    the trees enumerated in the tests; on a chain it is that of block verification (Sun et al., ICLR 2025), the
    optimum. Needs a tree of regular branching whose siblings were drawn from the distributions it carries.
    """

    is_lossless = True
    needs_distributions = True
    needs_chain = False

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        assert tree.branching is not None, "traversal needs a tree of regular branching"
        weights, residuals = _weigh(tree, target_log_probs, tree.branching)
        draws = uniform(rows, Stream.ACCEPT, 0, tree.num_nodes)
        is_kept = tree.valid & (draws < weights)
        has_kept = (ancestor_matrix(tree.ancestors) & is_kept.unsqueeze(-1)).any(1)
        node = _first_kept(tree.branching, has_kept)
        batch = first_numbers(tree.batch_size, node.device)
        # A leaf has no children to be rejected, so its target law is untouched.
        num_inner = residuals.shape[1]
        inner_law = residuals[batch, (node + 1).clamp(max=num_inner - 1)]
        leaf_law = target_log_probs[batch, node + 1].exp()
        next_law = torch.where((node + 1 < num_inner).unsqueeze(1), inner_law, leaf_law)
        ratio = joint_log_ratio_at(tree, target_log_probs, node)
        return keep_and_draw(tree, node, next_law.log(), rows, joint_log_ratio=ratio)


def _weigh(tree: TokenTree, target_log_probs: Tensor, branching: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Each node's probability to be kept, all nodes visited before it rejected, and the law after it then.

    Returns:
        Linear probabilities `[batch, nodes]`, and laws of the root and all nodes but the leaves,
        `[batch, 1 + inner, vocab]`.
    """
    starts = level_starts(branching)
    weights = torch.ones_like(target_log_probs[:, :1, 0])
    levels: list[Offers] = []
    first_above = -1
    for first_node, end_node, count in zip(starts, starts[1:], branching, strict=False):
        target = target_log_probs[:, first_above + 1 : first_node + 1].exp()
        offers = _offer_level(tree, target, weights, first_node, end_node, count)
        levels.append(offers)
        weights = offers.odds.flatten(1)
        first_above = first_node
    inner = [offers.weights for offers in levels[1:]]
    return torch.cat([*inner, weights], 1), torch.cat([offers.residual for offers in levels], 1)


def _offer_level(
    tree: TokenTree, target: Tensor, weights: Tensor, first_node: int, end_node: int, count: int
) -> Offers:
    """Offer one level's nodes, `count` to each node of the level above."""
    assert tree.draft_log_probs is not None, "traversal needs the draft's distributions"
    nodes = slice(first_node, end_node)
    return offer_children(
        target,
        weights,
        tree.draft_log_probs[:, first_node:end_node:count].exp(),
        tree.tokens[:, nodes].reshape(len(target), -1, count),
        tree.valid[:, nodes].reshape(len(target), -1, count),
        has_replacement=tree.has_replacement,
    )


def _first_kept(branching: tuple[int, ...], has_kept: Tensor) -> Tensor:
    """The first kept node, children before parents, -1 for none, `[batch]`.

    Args:
        branching: Children of every node by depth.
        has_kept: Whether a node of each subtree is kept, `[batch, nodes]` bool.
    """
    node = torch.full_like(has_kept[:, 0], -1, dtype=torch.int64)
    alive = torch.ones_like(has_kept[:, 0])
    first_above = -1
    for first_node, count in zip(level_starts(branching), branching, strict=False):
        place = (node - first_above).clamp(min=0)
        children = first_node + place.unsqueeze(1) * count + first_numbers(count, node.device)
        choice, is_below = first_of(has_kept.gather(1, children))
        alive = alive & is_below
        node = torch.where(alive, children.gather(1, choice.unsqueeze(1)).squeeze(1), node)
        first_above = first_node
    return node
