"""Per-token target thresholds."""

import torch
from torch import Tensor

from mtad.sampling import Stream, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree
from mtad.verification.base import keep_and_draw
from mtad.verification.paths import joint_log_ratio_at, step_log_probs


class ThresholdVerifier:
    """Keeps tokens by their target probability alone, in the manner of SGLang's two accept thresholds.

    From the root down, the drafted children of the last kept node are tried in order. With one uniform draw u per
    depth, a child is kept when its own p >= `single`, or when u <= (sum of p over the children tried so far, its own
    included) / `accumulated`. When no child is kept, the next token is drawn from the target without the tried
    tokens. A token that repeats among siblings counts once. Greedy rows keep the target's argmax only.

    Lossy. Guarantee: whatever was drafted, the next token is x with probability at most p(x) / `accumulated`, unless x
    was drafted with p(x) >= `single`. With both at 1 the rule is lossless, for every drafter.

    Args:
        single: Probability that keeps a token at once, in (0, 1].
        accumulated: What the summed probability is divided by, in (0, 1].
    """

    is_lossless = False
    needs_distributions = False
    needs_chain = False

    def __init__(self, single: float, accumulated: float) -> None:
        self.single = single
        self.accumulated = accumulated

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        scores = torch.where(rows.is_greedy.view(-1, 1, 1), _one_hot(target_log_probs), target_log_probs)
        probs = torch.where(tree.carried, 1.0, step_log_probs(tree, scores).exp())
        probs = torch.where(_repeats(tree) | ~tree.valid, 0.0, probs)
        draws = uniform(rows, Stream.ACCEPT, 0, tree.depth)
        node = torch.full_like(tree.winner, -1)
        is_open = torch.ones_like(tree.winner, dtype=torch.bool)
        for depth in range(tree.depth):
            children = (tree.parents == node.unsqueeze(1)) & tree.valid & is_open.unsqueeze(1)
            tried = torch.where(children, probs, 0.0).cumsum(1)
            is_likely = (draws[:, depth : depth + 1] <= tried / self.accumulated) | (probs >= self.single)
            keeps = children & is_likely
            is_open = keeps.any(1)
            node = torch.where(is_open, keeps.long().argmax(1), node)
        ratio = joint_log_ratio_at(tree, target_log_probs, node)
        return keep_and_draw(tree, node, _untried(tree, scores, node), rows, joint_log_ratio=ratio)


def _one_hot(log_probs: Tensor) -> Tensor:
    """All mass on the most likely token, natural log, `[batch, 1 + nodes, vocab]`."""
    certain = torch.full_like(log_probs, -torch.inf)
    return certain.scatter(-1, log_probs.argmax(-1, keepdim=True), 0.0)


def _repeats(tree: TokenTree) -> Tensor:
    """Whether an earlier valid sibling holds the same token, `[batch, nodes]` bool."""
    same = (tree.parents.unsqueeze(2) == tree.parents.unsqueeze(1)) & (
        tree.tokens.unsqueeze(2) == tree.tokens.unsqueeze(1)
    )
    return (same & tree.valid.unsqueeze(1)).tril(-1).any(2)


def _untried(tree: TokenTree, log_probs: Tensor, node: Tensor) -> Tensor:
    """Target log-probabilities after `node` without its drafted children's tokens, `[batch, vocab]`.

    The children's tokens stay where nothing else has mass.
    """
    batch = first_numbers(len(node), node.device)
    after = log_probs[batch, node + 1]
    is_child = (tree.parents == node.unsqueeze(1)) & tree.valid
    tried = torch.zeros_like(after).scatter_add(1, tree.tokens, is_child.to(after.dtype)) > 0
    rest = after.masked_fill(tried, -torch.inf)
    return torch.where((rest > -torch.inf).any(1, keepdim=True), rest, after)
