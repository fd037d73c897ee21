"""What every rule offers, and the part of a decision that all rules share."""

from typing import Protocol

import torch
from torch import Tensor

from mtad.sampling import Stream, draw_categorical, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, ancestor_matrix, path_to


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
    batch = first_numbers(len(node), node.device)
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


def joint_target_log_probs(tree: TokenTree, target_log_probs: Tensor) -> Tensor:
    """Natural log of the target's joint probability of the path that ends in each node, `[batch, nodes]`.

    Carried nodes add nothing; a token outside the target's support makes its whole subtree -inf.
    """
    batch = first_numbers(tree.batch_size, tree.tokens.device).unsqueeze(1)
    step = target_log_probs[batch, tree.parents + 1, tree.tokens]
    step = torch.where(tree.carried, 0.0, step)
    return torch.where(ancestor_matrix(tree.ancestors), step.unsqueeze(1), 0.0).sum(-1)
