"""What every rule offers, and the part of a decision that all rules share."""

from typing import Protocol

import torch
from torch import Tensor

from mtad.sampling import Stream, draw_categorical, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, ancestor_matrix


class Verifier(Protocol):
    """A pure rule: a drafted tree and the target's log-probabilities become an `Acceptance`.

    Attributes:
        is_lossless: Whether the output's law equals the target's own.
        needs_distributions: Whether the tree must carry `draft_log_probs`.
        needs_chain: Whether the rule is defined for a single drafted path only.
    """

    is_lossless: bool
    needs_distributions: bool
    needs_chain: bool

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """Choose the kept path and the token after it.

        Args:
            tree: The draft.
            target_log_probs: Warped natural logs after the pending token and each node, `[batch, 1 + nodes, vocab]`.
            rows: Settings and positions of the rows.
        """
        ...


class TargetOnly:
    """Keeps nothing and lets the target draw its own token: single-token decoding, lossless by definition."""

    is_lossless = True
    needs_distributions = False
    needs_chain = False

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        root = torch.full_like(tree.winner, -1)
        return keep_node(tree, root, target_log_probs, rows, joint_log_ratio=target_log_probs.new_zeros(len(root)))


def keep_node(
    tree: TokenTree, node: Tensor, target_log_probs: Tensor, rows: RowControls, *, joint_log_ratio: Tensor
) -> Acceptance:
    """Keep the path that ends in `node` and draw one more token from the target after it.

    Args:
        tree: The draft.
        node: Last kept node, -1 to keep nothing, `[batch]` int64.
        target_log_probs: Warped natural logs, `[batch, 1 + nodes, vocab]`.
        rows: Settings and positions of the rows.
        joint_log_ratio: As in `Acceptance`, `[batch]`.
    """
    batch = torch.arange(len(node), device=node.device)
    return keep_and_draw(tree, node, target_log_probs[batch, node + 1], rows, joint_log_ratio=joint_log_ratio)


def keep_and_draw(
    tree: TokenTree, node: Tensor, next_log_probs: Tensor, rows: RowControls, *, joint_log_ratio: Tensor
) -> Acceptance:
    """Keep the path that ends in `node` and draw one more token from a law of its own.

    Args:
        tree: The draft.
        node: Last kept node, -1 to keep nothing, `[batch]` int64.
        next_log_probs: Natural log of the next token's law, normalised or not, `[batch, vocab]`.
        rows: Settings and positions of the rows.
        joint_log_ratio: As in `Acceptance`, `[batch]`.
    """
    path_nodes, num_accepted = path_to(tree, node)
    return Acceptance(
        path_nodes=path_nodes,
        num_accepted=num_accepted,
        next_tokens=draw_next_token(next_log_probs, rows),
        joint_log_ratio=joint_log_ratio,
    )


def draw_next_token(log_probs: Tensor, rows: RowControls) -> Tensor:
    """One token per row from `[batch, vocab]` natural logs; the most likely one in greedy rows."""
    drawn = draw_categorical(log_probs, uniform(rows, Stream.NEXT_TOKEN, 0, 1)).squeeze(1)
    return torch.where(rows.is_greedy, log_probs.argmax(-1), drawn)


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
    nodes = torch.arange(tree.num_nodes, device=node.device)
    bits = tree.ancestors.gather(1, node.clamp(min=0).unsqueeze(1))
    on_path = ((bits >> nodes) & 1).bool() & (node >= 0).unsqueeze(1)
    path = torch.full((len(node), gamma), -1, dtype=torch.int64, device=node.device)
    path = path.scatter_reduce(1, tree.depths - 1, torch.where(on_path, nodes, -1), "amax")
    return path, on_path.sum(1)


def joint_target_log_probs(tree: TokenTree, target_log_probs: Tensor) -> Tensor:
    """Natural log of the target's joint probability of the path that ends in each node, `[batch, nodes]`.

    Carried nodes add nothing; a token outside the target's support makes its whole subtree -inf.
    """
    batch = torch.arange(tree.batch_size, device=tree.tokens.device).unsqueeze(1)
    step = target_log_probs[batch, tree.parents + 1, tree.tokens]
    step = torch.where(tree.carried, 0.0, step)
    return torch.where(ancestor_matrix(tree.ancestors), step.unsqueeze(1), 0.0).sum(-1)
