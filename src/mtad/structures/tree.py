"""The draft: a batch of token trees in level order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtad.structures.constants import first_numbers, single_bits

MAX_TREE_NODES = 64
"""Nodes one tree can hold: one bit each in the int64 ancestor mask."""


@dataclass(slots=True, kw_only=True)
class TokenTree:
    """A batch of drafted token trees with one shape, nodes in level order.

    The root is the last committed token and is not a node. All rows have the same number of node slots, at most
    `MAX_TREE_NODES`; what hangs where may differ from row to row.

    Attributes:
        tokens: Drafted token ids, `[batch, nodes]` int64.
        parents: Index of each node's parent node, -1 for the root, `[batch, nodes]` int64.
        depths: Depth of each node, 1 for children of the root, `[batch, nodes]` int64, never falling along a row.
            Drafters whose rows share one layout may give `[nodes]`, which is spread over the rows.
        joint_draft_log_probs: Natural log of the draft's joint probability of the path that ends in each
            node, under the draft's warped distribution, `[batch, nodes]` float.
        ancestors: Bit i is set when node i is the node itself or one of its ancestors, `[batch, nodes]` int64.
        winner: Node index of the deepest node of the highest-weight beam, `[batch]` int64.
        valid: Whether the node slot holds a drafted token, `[batch, nodes]` bool. A slot without one is absent: it has
            no valid children, no rule keeps it, and whatever else is written there has no meaning, so that a row may
            draft less than the shape has room for. In trees that carry distributions, whether a slot is valid may
            depend on what was drafted before it but not on its own token, or lossless rules would be biased.
        carried: Whether the slot repeats a beam that already ended in EOS, `[batch, nodes]` bool. A carried
            node adds log 1 = 0 to both joint log-probabilities and emits nothing.
        draft_log_probs: Warped draft log-probabilities each node was drawn from, `[batch, nodes, vocab]`;
            present only where a rule needs whole distributions. Siblings carry the same one: the first sibling's.
        branching: Children of every node by depth, root first, where that is fixed: then node i of a level has its
            children at places i * count to (i + 1) * count - 1 of the next level. None for irregular trees.
        has_replacement: Whether siblings were drawn with replacement, so that tokens may repeat among them.
        depth: Depth of the deepest level; read off `depths` when not given, which a captured graph cannot do.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    joint_draft_log_probs: Tensor
    ancestors: Tensor
    winner: Tensor
    valid: Tensor
    carried: Tensor
    draft_log_probs: Tensor | None = None
    branching: tuple[int, ...] | None = None
    has_replacement: bool = False
    depth: int = -1

    def __post_init__(self) -> None:
        if self.depths.dim() == 1:
            self.depths = self.depths.expand_as(self.tokens)
        if self.depth < 0:
            self.depth = int(self.depths[:, -1].max()) if self.num_nodes else 0

    @property
    def num_nodes(self) -> int:
        """Node slots per row."""
        return self.tokens.shape[1]

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.tokens.shape[0]


def ancestor_bitmask(parents: Tensor, depth: int | None = None) -> Tensor:
    """Ancestor bits of every node, itself included.

    Args:
        parents: `[batch, nodes]` int64 in level order, -1 for the root; at most 64 nodes.
        depth: Depth of the deepest level, where it is known; saves work.

    Returns:
        `[batch, nodes]` int64; bit i set when node i lies on the path to the node.
    """
    own = node_bits(0, parents.shape[1], parents.device)
    bits = own.expand_as(parents)
    for _ in range(1, parents.shape[1] if depth is None else depth):
        inherited = bits.gather(1, parents.clamp(min=0))
        bits = own | torch.where(parents >= 0, inherited, 0)
    return bits


def node_bits(first_node: int, count: int, device: torch.device) -> Tensor:
    """The own bit of each of `count` neighbouring nodes, `[count]` int64."""
    return single_bits(count, device, first_node)


def ancestor_matrix(ancestors: Tensor) -> Tensor:
    """Spread ancestor bits over a boolean matrix.

    Args:
        ancestors: `[batch, nodes]` int64 bit masks.

    Returns:
        `[batch, nodes, nodes]` bool; `[b, i, j]` is true when node j lies on the path to node i.
    """
    return has_bits(ancestors.unsqueeze(-1), ancestors.shape[-1])


def has_bits(masks: Tensor, count: int) -> Tensor:
    """Whether each of the lowest `count` bits is set in masks `[..., 1]` int64, `[..., count]` bool."""
    return (masks & single_bits(count, masks.device)) != 0


def joint_above(parents: Tensor, joint_log_probs: Tensor) -> Tensor:
    """Joint log-probability of the path that ends in each node's parent, 0 for the root, `[batch, nodes]`."""
    above = joint_log_probs.gather(1, parents.clamp(min=0))
    return above.masked_fill(parents < 0, 0.0)


def path_to(tree: TokenTree, node: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes from the root's child down to `node`.

    Args:
        tree: The draft.
        node: Last node, -1 for the empty path, `[batch]` int64.

    Returns:
        Node indices `[batch, gamma]` with -1 behind the end, and path lengths `[batch]`, both int64.
    """
    if tree.num_nodes == 0:
        return tree.tokens, torch.zeros_like(node)
    gamma = tree.depth
    nodes = first_numbers(tree.num_nodes, node.device)
    bits = tree.ancestors.gather(1, node.clamp(min=0).unsqueeze(1))
    on_path = has_bits(bits, tree.num_nodes) & (node >= 0).unsqueeze(1)
    path = node.new_full((len(node), gamma), -1)
    path = path.scatter_reduce(1, tree.depths - 1, torch.where(on_path, nodes, -1), "amax")
    return path, on_path.sum(1)
