"""Beam sampling with the auxiliary model from several committed beams: a forest of drafted nodes."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mtad.drafting.beam import assemble_tree
from mtad.drafting.beams import Beams, BeamSampler
from mtad.models.runner import ModelRunner
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, node_bits


@dataclass(slots=True, kw_only=True)
class BeamFront:
    """Beams of one depth and where they hang.

    Attributes:
        beams: The beams, `[batch, width]` each.
        roots: Committed beam each descends from, `[batch, width]` int64.
        paths: Node indices from the root's child down to each, 0 behind it, `[batch, width, gamma]` int64.
    """

    beams: Beams
    roots: Tensor
    paths: Tensor

    @classmethod
    def committed(cls, beams: Beams, gamma: int) -> "BeamFront":
        """The committed beams, above the first level."""
        roots = first_numbers(beams.tokens.shape[1], beams.tokens.device).expand_as(beams.tokens)
        return cls(beams=beams, roots=roots, paths=roots.new_zeros(*roots.shape, gamma))


@dataclass(slots=True, kw_only=True)
class ForestLevel(BeamFront):
    """The drafted nodes of one depth and the law they were drawn from.

    Attributes:
        token_ids: Tokens that each beam above may go on with, `[batch, width, kept]` int64.
        law: Probability with which each (beam, token) pair was drawn, linear, `[batch, width, kept]` float64.
    """

    token_ids: Tensor
    law: Tensor


@dataclass(slots=True, kw_only=True)
class Forest:
    """What was drafted behind the committed beams of every request.

    Attributes:
        levels: Nodes by depth, `width` each.
        tree: All nodes, `[batch, gamma * width]`; one row a request, although its nodes hang under several beams.
    """

    levels: list[ForestLevel]
    tree: TokenTree


class ForestDrafter:
    """Beam sampling of depth gamma that goes on from `width` weighted beams per request (Qin et al., AAAI 2025).

    Beam w of request b is row b * width + w of the runner's cache. Every row is fed the nodes of its whole request,
    so that one set of ancestor bits serves all of them; what a node gives under another root than its own is not read.

    Args:
        runner: The model that drafts.
        gamma: Depth, at least 1.
        sampler: Width and draw of the beams.
    """

    def __init__(self, runner: ModelRunner, gamma: int, sampler: BeamSampler) -> None:
        self.runner = runner
        self.gamma = gamma
        self.sampler = sampler
        self.num_slots = gamma * sampler.width

    def draft(self, beams: Beams, previous: Tensor, pending: Tensor, rows: RowControls) -> Forest:
        """Draft behind the committed beams.

        Args:
            beams: Weights, newest tokens and ends of the committed beams.
            previous: Last but one token of every cache row, `[batch * width]` int64.
            pending: Last token of every cache row, `[batch * width]` int64.
            rows: Settings and positions of the requests.
        """
        width = self.sampler.width
        logits = self.runner.score_root(previous, pending).view(len(beams.tokens), width, -1)
        front = BeamFront.committed(beams, self.gamma)
        ancestors = torch.zeros_like(beams.tokens)
        levels: list[ForestLevel] = []
        for depth in range(1, self.gamma + 1):
            first_node = (depth - 1) * width
            level = self._grow(front, logits, rows, depth)
            own = node_bits(first_node, width, ancestors.device)
            ancestors = own | (ancestors.gather(1, level.beams.origins) if depth > 1 else ancestors)
            level.beams.ancestors = ancestors
            levels.append(level)
            front = level
            if depth < self.gamma:
                tokens, bits = (each.repeat_interleave(width, 0) for each in (level.beams.tokens, ancestors))
                scored = self.runner.score_level(tokens, bits, first_node, depth)
                logits = logits_of_roots(scored, level.roots)
        return Forest(levels=levels, tree=assemble_tree([each.beams for each in levels], rows))

    def _grow(self, front: BeamFront, logits: Tensor, rows: RowControls, depth: int) -> ForestLevel:
        log_probs, token_ids = self.sampler.candidates(front.beams, logits, rows)
        log_weights = front.beams.weights.unsqueeze(-1) + log_probs
        beams = self.sampler.expand(front.beams, logits, rows, depth)
        paths = front.paths.gather(1, beams.origins.unsqueeze(-1).expand_as(front.paths)).clone()
        paths[:, :, depth - 1] = first_numbers(paths.shape[1], paths.device) + (depth - 1) * paths.shape[1]
        return ForestLevel(
            beams=beams,
            roots=front.roots.gather(1, beams.origins),
            paths=paths,
            token_ids=token_ids,
            law=log_weights.double().flatten(1).softmax(-1).view_as(log_weights),
        )


def logits_of_roots(scored: Tensor, roots: Tensor) -> Tensor:
    """Pick each node's logits from the cache row of its root.

    Args:
        scored: Logits of a level's nodes under every committed beam, `[batch * width, width, vocab]`.
        roots: Committed beam of each node, `[batch, width]` int64.

    Returns:
        `[batch, width, vocab]`.
    """
    batch, width = roots.shape
    rows = first_numbers(batch, roots.device).unsqueeze(1)
    return scored.view(batch, width, width, -1)[rows, roots, first_numbers(width, roots.device)]


def repeat_tree(tree: TokenTree, count: int) -> TokenTree:
    """Every row of a tree `count` times, neighbours in the batch."""
    values: dict[str, Any] = {item.name: getattr(tree, item.name) for item in fields(tree)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    repeated: dict[str, Any] = {name: value.repeat_interleave(count, 0) for name, value in tensors.items()}
    return replace(tree, **repeated)
