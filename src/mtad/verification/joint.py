"""The joint rule of multi-token joint decoding, for chains and trees."""

import torch
from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, has_bits
from mtad.verification.base import joint_target_log_probs, keep_node


class JointVerifier:
    """Keeps the deepest path whose joint likelihood ratio exceeds tau (Qin et al. 2025, algorithm 2; MMTAD).

    A node passes when log P(its path) - log Q(the winner beam's prefix of the same length) > log tau, where the
    prefix is traced through the winner's own ancestors. The deepest depth with a passing node wins; within it the
    node of the highest log P. On a chain this is MTAD: the longest prefix that passes, even if a shorter one fails.

    Lossy by design. Guarantee per block: P(kept path) > tau * Q(winner's prefix of the same length).
    """

    is_lossless = False
    needs_distributions = False
    needs_chain = False

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        return keep_deepest_passing(tree, winner_reference(tree), target_log_probs, rows)


def keep_deepest_passing(tree: TokenTree, reference: Tensor, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
    """Keep the deepest node with log P(its path) - reference > log tau, of equally deep ones that of the highest log P.

    Args:
        tree: The draft.
        reference: Natural log of what each node's path is measured against, `[batch, nodes]`.
        target_log_probs: Warped natural logs, `[batch, 1 + nodes, vocab]`.
        rows: Settings and positions of the rows.
    """
    joint_target = joint_target_log_probs(tree, target_log_probs)
    log_ratio = joint_target - reference
    passes = tree.valid & (log_ratio > rows.log_thresholds.unsqueeze(1))
    deepest = torch.where(passes, tree.depths, 0).amax(1, keepdim=True)
    eligible = passes & (tree.depths == deepest)
    best = joint_target.masked_fill(~eligible, -torch.inf).argmax(1)
    node = torch.where(deepest.squeeze(1) > 0, best, -1)
    kept_ratio = log_ratio.gather(1, best.unsqueeze(1)).squeeze(1)
    return keep_node(tree, node, target_log_probs, rows, joint_log_ratio=torch.where(node >= 0, kept_ratio, 0.0))


def winner_reference(tree: TokenTree) -> Tensor:
    """Joint draft log-probability of the winner's prefix at every node's depth, `[batch, nodes]` natural log.

    The prefix is traced through the winner's own ancestors, not read off its slot in each level. It is infinite at
    depths the winner does not reach, where nothing can be measured and so nothing passes.
    """
    on_winner = has_bits(tree.ancestors.gather(1, tree.winner.unsqueeze(1)), tree.num_nodes)
    by_depth = tree.joint_draft_log_probs.new_full((tree.batch_size, tree.depth), torch.inf)
    columns = tree.depths - 1
    values = torch.where(on_winner & tree.valid, tree.joint_draft_log_probs, torch.inf)
    by_depth = by_depth.scatter_reduce(1, columns, values, "amin")
    return by_depth.gather(1, columns)
