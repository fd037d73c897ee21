"""Drafting and scoring of one batch, each by itself, over and over from the same state."""

from collections.abc import Callable

import torch
from torch import Tensor

from mtad.decoding.assisted import AssistedDecoder
from mtad.drafting import limit_tree
from mtad.models.graphs import Call, Capture
from mtad.structures.tree import TokenTree


class PhaseLoop:
    """The two halves of an iteration that models work for; nothing is kept, so each repeat does the same.

    Args:
        decoder: Has read its prompts.
        capture: Records a phase so that it can be replayed; None runs every repeat as it is.

    Attributes:
        num_nodes: Nodes of the trees that are drafted and scored; 0 where nothing is drafted.
    """

    def __init__(self, decoder: AssistedDecoder, capture: Capture | None = None) -> None:
        self._decoder = decoder
        self.num_nodes = decoder.drafter.num_nodes
        decoder.constraints.begin_step([True] * len(decoder.pending))
        if capture is not None:
            for state in decoder.states:
                state.fix_shapes()
        with torch.inference_mode():
            self._tree = self._draft()
            # Without a draft there is nothing to capture, of which CUDA would warn.
            self._draft_again = _repeatable(lambda: self._draft().tokens, capture if self.num_nodes else None)
            self._score_again = _repeatable(self._score, capture)

    @torch.inference_mode()
    def draft(self) -> Tensor:
        """Draft behind the pending tokens once more; the drafted tokens, `[batch, nodes]`."""
        return self._draft_again()

    @torch.inference_mode()
    def score(self) -> Tensor:
        """Score the first draft once more with the target; `[batch, 1 + nodes, vocab]` logits."""
        return self._score_again()

    def _draft(self) -> TokenTree:
        decoder = self._decoder
        rows = decoder.rows.at(decoder.target.lengths.clone())
        for policy in decoder.policies:
            rows = policy.apply(rows)
        return limit_tree(decoder.drafter.draft(decoder.previous, decoder.pending, rows), rows)

    def _score(self) -> Tensor:
        return self._decoder.target.score_tree(self._decoder.pending, self._tree)


def _repeatable(call: Callable[[], Tensor], capture: Capture | None) -> Call:
    """The call after one run that warms it up, captured where that can be done."""
    call()
    if capture is None:
        return call
    try:
        return capture(call)
    except RuntimeError:
        # It asks the device something, as it does within an iteration, which then runs as it is too.
        return call
