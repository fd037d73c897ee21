"""Where a row's draft ends before the tree does."""

from torch import Tensor

from mtad.structures.between_calls import between_calls
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, joint_above


def limit_tree(tree: TokenTree, rows: RowControls) -> TokenTree:
    """Mark the nodes below a row's depth limit, or below a node the draft is unsure of, as absent; in place.

    Whether a node is there depends on the nodes above it alone, so lossless rules stay lossless.

    Args:
        tree: The draft; its `valid` is replaced.
        rows: Depth limits and confidences of the rows.
    """
    if binds(rows, tree.depth):
        tree.valid = tree.valid & within_limits(tree.parents, tree.depths, tree.joint_draft_log_probs, rows)
    return tree


def binds(rows: RowControls, depth: int) -> bool:
    """Whether any row may end its draft before `depth` levels."""
    return rows.has_confidence or depth > rows.shallowest


@between_calls
def within_limits(parents: Tensor, depths: Tensor, joint_draft_log_probs: Tensor, rows: RowControls) -> Tensor:
    """Whether a row drafts each node, `[batch, nodes]` bool.

    Args:
        parents: Parent of each node, -1 for the root, `[batch, nodes]` int64.
        depths: Depth of each node, `[batch, nodes]` or `[nodes]` int64.
        joint_draft_log_probs: Natural log, `[batch, nodes]`.
        rows: Depth limits and confidences of the rows.
    """
    above = joint_above(parents, joint_draft_log_probs)
    return (depths <= rows.depth_limits.unsqueeze(1)) & (above >= rows.log_confidences.unsqueeze(1))
