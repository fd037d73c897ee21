"""Exact acceptance where a row asks for it, another rule elsewhere."""

from dataclasses import replace

import torch
from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, ancestor_matrix
from mtad.verification.base import Verifier
from mtad.verification.exact_match import ExactMatchVerifier


class StrictSpanVerifier:
    """Judges rows inside a strict span by `exact_match`, the others by a rule of choice.

    The tokens of a strict span are the target's own picks, whatever was drafted: its argmax, or its own draws. So that
    a span which opens inside a draft is strict from its first token on, other rows end their draft behind a token that
    may open one.

    Args:
        relaxed: The rule outside strict spans.
        openers: Tokens that may open a span, `[vocab]` bool.
    """

    def __init__(self, relaxed: Verifier, openers: Tensor) -> None:
        self.relaxed = relaxed
        self.strict = ExactMatchVerifier()
        self.openers = openers
        self.is_lossless = relaxed.is_lossless
        self.needs_distributions = relaxed.needs_distributions
        self.needs_chain = relaxed.needs_chain

    def accept(self, tree: TokenTree, target_log_probs: Tensor, rows: RowControls) -> Acceptance:
        """See `Verifier.accept`."""
        relaxed = self.relaxed.accept(self._ended_at_openers(tree), target_log_probs, rows)
        strict = self.strict.accept(tree, target_log_probs, rows)
        is_strict = rows.is_strict
        return Acceptance(
            path_nodes=torch.where(is_strict.unsqueeze(1), strict.path_nodes, relaxed.path_nodes),
            num_accepted=torch.where(is_strict, strict.num_accepted, relaxed.num_accepted),
            next_tokens=torch.where(is_strict, strict.next_tokens, relaxed.next_tokens),
            joint_log_ratio=torch.where(is_strict, strict.joint_log_ratio, relaxed.joint_log_ratio),
        )

    def opens(self, tree: TokenTree) -> Tensor:
        """Whether each node's token may open a span, `[batch, nodes]` bool."""
        return self.openers[tree.tokens]

    def _ended_at_openers(self, tree: TokenTree) -> TokenTree:
        own = torch.eye(tree.num_nodes, dtype=torch.bool, device=tree.tokens.device)
        above = ancestor_matrix(tree.ancestors) & ~own
        is_below = (above & self.opens(tree).unsqueeze(1)).any(-1)
        return replace(tree, valid=tree.valid & ~is_below)
