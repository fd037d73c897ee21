"""Keeps the drafted tokens that the target itself would have picked."""

import torch
from torch import Tensor

from mtad.sampling import Stream, draw_categorical, uniform_along
from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, path_to
from mtad.verification.paths import deepest_node, joint_log_ratio_at


class ExactMatchVerifier:
    """Keeps the longest path whose every token is the target's own pick after the tokens before it.

    The check of greedy speculation (Stern et al. 2018, blockwise parallel decoding) extended to sampling: the pick
    is the target's argmax in greedy rows, else the target's own draw. The token after the kept path is the pick
    itself. The draw for a place in the text is the one that single-token decoding makes there, whatever was drafted.

    Lossless for every drafter, beam search included. Stronger still: with the same seed a row emits exactly the
    tokens of single-token decoding, so the draft changes the speed alone. It keeps less than rules that weigh
    the draft's distribution: a token drafted from q survives with probability sum p * q instead of sum min(p, q).
    """

    is_lossless = True
    needs_distributions = False
    needs_chain = False

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        picks = _target_picks(tree, target_log_probs, rows)
        passes = tree.tokens == picks.gather(1, tree.parents + 1)
        node = deepest_node(tree, passes, target_log_probs)
        path_nodes, num_accepted = path_to(tree, node)
        return Acceptance(
            path_nodes=path_nodes,
            num_accepted=num_accepted,
            next_tokens=picks.gather(1, (node + 1).unsqueeze(1)).squeeze(1),
            joint_log_ratio=joint_log_ratio_at(tree, target_log_probs, node),
        )


def _target_picks(tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Tensor:
    """The target's own token after the root and after every node, `[batch, 1 + nodes]` int64."""
    depths = torch.cat([torch.zeros_like(tree.parents[:, :1]), tree.depths.expand_as(tree.parents)], 1)
    draws = uniform_along(rows, Stream.NEXT_TOKEN, tree.depth + 1).gather(1, depths)
    drawn = draw_categorical(target_log_probs.flatten(0, 1), draws.view(-1, 1)).view_as(depths)
    return torch.where(rows.is_greedy.unsqueeze(1), target_log_probs.argmax(-1), drawn)
