"""Choosing the end of the kept path, for rules that judge each node by itself."""

import torch
from torch import Tensor

from mtad.structures.constants import first_numbers
from mtad.structures.tree import TokenTree, ancestor_matrix
from mtad.verification.base import joint_target_log_probs


def deepest_node(tree: TokenTree, passes: Tensor, target_log_probs: Tensor) -> Tensor:
    """End of the longest path whose nodes all pass; among equally long ones the likeliest under the target.

    Args:
        tree: The draft.
        passes: What a rule says of each node by itself, `[batch, nodes]` bool.
        target_log_probs: Warped natural logs, `[batch, 1 + nodes, vocab]`.

    Returns:
        Node index, -1 where no path passes, `[batch]` int64; the lowest index among exact ties.
    """
    node_passes = (passes & tree.valid) | tree.carried
    whole_path = (node_passes.unsqueeze(1) | ~ancestor_matrix(tree.ancestors)).all(-1)
    reached = torch.where(whole_path & tree.valid, tree.depths, 0)
    deepest = reached.amax(1, keepdim=True)
    scores = joint_target_log_probs(tree, target_log_probs)
    # A path that passes may have probability zero; the clamp keeps it ahead of the nodes out of the race.
    scores = scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(reached < deepest, -torch.inf)
    return torch.where(deepest.squeeze(1) > 0, scores.argmax(1), -1)


def joint_log_ratio_at(tree: TokenTree, target_log_probs: Tensor, node: Tensor) -> Tensor:
    """Joint log P - log Q of the path that ends in `node`, natural log, `[batch]`; 0 where nothing is kept (-1)."""
    ratio = joint_target_log_probs(tree, target_log_probs) - tree.joint_draft_log_probs
    return torch.where(node >= 0, ratio.gather(1, node.clamp(min=0).unsqueeze(1)).squeeze(1), 0.0)


def step_log_probs(tree: TokenTree, target_log_probs: Tensor) -> Tensor:
    """Target log-probability of every node's token at its own place, natural log, `[batch, nodes]`."""
    batch = first_numbers(tree.batch_size, tree.tokens.device).unsqueeze(1)
    return target_log_probs[batch, tree.parents + 1, tree.tokens]
