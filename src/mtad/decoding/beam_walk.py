"""Walks down a scored forest until every request's beams are found."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtad.decoding.beam_candidates import LayerCandidates
from mtad.drafting import BeamFront, Beams, BeamSampler, Forest, logits_of_roots
from mtad.structures.rows import RowControls, merge_rows
from mtad.verification import BeamLayer, BeamLayerVerifier


@dataclass(slots=True, kw_only=True)
class Ending:
    """Where the walk of each request ended, and the beams it found there.

    Attributes:
        beams: The new beams; the old ones where a request did not walk.
        roots: Committed beam each goes on from, `[batch, width]` int64.
        paths: Forest nodes above each, `[batch, width, gamma]` int64; valid in front of the last layer.
        tokens: New token ids, `[batch, width, gamma + 1]` int64; valid for `num_layers` layers, like the next two.
        log_probs: Their temperature-1 natural log-probabilities, 0 where carried.
        from_draft: Whether each was drafted, bool.
        num_layers: New layers, 0 where a request did not walk, `[batch]` int64.
        num_passed: Layers filled by drafts alone, `[batch]` int64.
        is_last: Whether the answer ends here, `[batch]` bool.
    """

    beams: Beams
    roots: Tensor
    paths: Tensor
    tokens: Tensor
    log_probs: Tensor
    from_draft: Tensor
    num_layers: Tensor
    num_passed: Tensor
    is_last: Tensor


class BeamWalk:
    """Verifies a forest layer by layer.

    Args:
        rule: Judges one layer.
        sampler: Draw of the beams and the tokens that finish one.
    """

    def __init__(self, rule: BeamLayerVerifier, sampler: BeamSampler) -> None:
        self._rule = rule
        self._sampler = sampler

    def run(
        self, beams: Beams, forest: Forest, logits: Tensor, rows: RowControls, active: Tensor, room: Tensor
    ) -> Ending:
        """Find the new beams of every request.

        Args:
            beams: The committed beams.
            forest: What was drafted behind them.
            logits: The target's, `[batch * width, 1 + nodes, vocab]`.
            rows: Settings and positions of the requests.
            active: Requests that walk, `[batch]` bool.
            room: Tokens until the limit of each, `[batch]` int64; a walk ends there.
        """
        gamma, width = len(forest.levels), self._rule.width
        front = BeamFront.committed(beams, gamma)
        ending, is_walking = _standing(front), active
        scored = logits[:, 0].view(len(active), width, -1)
        node_log_probs: list[Tensor] = []
        for depth in range(1, gamma + 2):
            level = forest.levels[depth - 1] if depth <= gamma else None
            candidates = LayerCandidates.below(front.beams, scored, level, self._sampler, rows)
            draft_law, drafted = candidates.draft_law(level)
            decision = self._rule.accept(candidates.target_law, draft_law, drafted, rows, depth)
            found = candidates.take(decision.picks)
            is_last = _is_best_finished(found) | (room <= depth)
            here = _ending(found, decision, front, forest, node_log_probs, is_last)
            ending = merge_rows(is_walking & (is_last | ~decision.is_passed), here, ending)
            is_walking = is_walking & ~is_last & decision.is_passed
            if level is not None:
                node_log_probs.append(candidates.unwarped_of(level))
                kept = candidates.take(torch.where(decision.accepted, drafted, -1))
                # A request that has ended goes on with the draft's weights, which are never all zero.
                front = replace(level, beams=merge_rows(is_walking, kept, level.beams))
                first = 1 + (depth - 1) * width
                scored = logits_of_roots(logits[:, first : first + width], level.roots)
        return ending


def _is_best_finished(beams: Beams) -> Tensor:
    """Whether the most probable beam has drawn EOS, `[batch]` bool."""
    return beams.finished.gather(1, beams.joint.argmax(1, keepdim=True)).squeeze(1)


def _standing(front: BeamFront) -> Ending:
    """The ending of requests that do not walk."""
    batch, width, gamma = front.paths.shape
    nothing = front.paths.new_zeros(batch, width, gamma + 1)
    return Ending(
        beams=front.beams,
        roots=front.roots,
        paths=front.paths,
        tokens=nothing,
        log_probs=nothing.float(),
        from_draft=nothing.bool(),
        num_layers=nothing[:, 0, 0],
        num_passed=nothing[:, 0, 0],
        is_last=nothing[:, 0, 0].bool(),
    )


def _ending(
    found: Beams, decision: BeamLayer, front: BeamFront, forest: Forest, node_log_probs: list[Tensor], is_last: Tensor
) -> Ending:
    """The ending of requests whose beams lie in the layer below `front`."""
    _, width, gamma = front.paths.shape
    depth = len(node_log_probs) + 1
    paths = front.paths.gather(1, found.origins.unsqueeze(-1).expand_as(front.paths))
    above = paths[:, :, : depth - 1]
    room = (0, gamma + 1 - depth)

    def texts(newest: Tensor, nodes: Tensor) -> Tensor:
        """Values along the path, `[batch, width, gamma + 1]`."""
        along = nodes.unsqueeze(1).expand(-1, width, -1).gather(2, above)
        return pad(torch.cat([along, newest.unsqueeze(-1)], 2), room)

    assert found.unwarped is not None
    nodes = torch.cat([found.unwarped[:, :0], *node_log_probs], 1)
    is_node = torch.ones_like(nodes, dtype=torch.bool)
    layers = torch.full_like(is_last, depth, dtype=torch.int64)
    return Ending(
        beams=found,
        roots=front.roots.gather(1, found.origins),
        paths=paths,
        tokens=texts(found.tokens, forest.tree.tokens),
        log_probs=texts(found.unwarped, nodes),
        from_draft=texts(decision.from_draft, is_node),
        num_layers=layers,
        num_passed=layers - 1 + decision.is_passed,
        is_last=is_last,
    )
