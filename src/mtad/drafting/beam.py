"""Beam sampling with the auxiliary model: one winner path, or the whole beam tree."""

import torch
from torch import Tensor

from mtad.drafting.beams import Beams, BeamSampler
from mtad.drafting.chain import chain_tree
from mtad.drafting.limits import binds, within_limits
from mtad.models.runner import ModelRunner
from mtad.structures.acceptance import Acceptance
from mtad.structures.between_calls import between_calls
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, node_bits, path_to


class BeamDrafter:
    """Beam sampling of depth gamma (Qin et al. 2025, section 4.1).

    The winner is the beam of the highest weight at the end. A beam that drew EOS is carried on, not expanded.

    Args:
        runner: The model that drafts.
        gamma: Depth, at least 1.
        sampler: Width and draw of the beams.
        keep_tree: Offer all beams as one tree (MMTAD) instead of the winner alone (MTAD).
    """

    def __init__(self, runner: ModelRunner, gamma: int, sampler: BeamSampler, *, keep_tree: bool = True) -> None:
        self.runner: ModelRunner = runner
        self.gamma = gamma
        self.sampler = sampler
        self.keep_tree = keep_tree
        self.num_nodes = gamma * sampler.width if keep_tree else gamma
        self.num_slots = gamma * sampler.width + 1
        self._winner_path: Tensor | None = None

    def draft(self, previous: Tensor, pending: Tensor, rows: RowControls) -> TokenTree:
        """See `Drafter.draft`."""
        levels = self.draw_levels(previous, pending, rows)
        if self.keep_tree:
            return assemble_tree(levels, rows)
        tree, self._winner_path = _winner_chain(levels, rows)
        return tree

    def draw_levels(self, previous: Tensor, pending: Tensor, rows: RowControls) -> list[Beams]:
        """The beams of every depth that a row drafts, with their ancestor bits."""
        width = self.sampler.width
        logits = self.runner.score_root(previous, pending).unsqueeze(1)
        beams = Beams.root(logits)
        levels: list[Beams] = []
        deepest = min(self.gamma, rows.deepest)
        for depth in range(1, deepest + 1):
            first_node = (depth - 1) * width
            bits = node_bits(first_node, width, logits.device)
            beams = _next_level(self.sampler, beams, logits, rows, self.sampler.uniforms(rows, depth), bits)
            levels.append(beams)
            if depth == deepest or rows.all_unsure(beams.joint):
                break
            assert beams.ancestors is not None
            logits = self.runner.score_level(beams.tokens, beams.ancestors, first_node, depth)
        return levels

    def keep_path(self, acceptance: Acceptance, active: Tensor) -> None:
        """See `Drafter.keep_path`."""
        path = acceptance.path_nodes if self.keep_tree else self._winner_path
        assert path is not None, "draft() comes before keep_path()"
        self.runner.keep_path(path, acceptance.num_accepted, active)


@between_calls
def _next_level(
    sampler: BeamSampler, above: Beams, logits: Tensor, rows: RowControls, uniforms: Tensor | None, own_bits: Tensor
) -> Beams:
    """The beams of the next depth with their ancestor bits; `own_bits` `[width]` are those of their own nodes."""
    beams = sampler.expand_by(above, logits, rows, uniforms)
    beams.ancestors = own_bits.expand_as(beams.tokens)
    if above.ancestors is not None:
        beams.ancestors = above.ancestors.gather(1, beams.origins) | beams.ancestors
    return beams


@between_calls
def assemble_tree(levels: list[Beams], rows: RowControls) -> TokenTree:
    """The beams that `draw_levels` gave as one tree, `width` nodes a depth.

    The winner is the beam of the highest weight at the deepest level that its row drafts.
    """
    width = levels[0].tokens.shape[1]
    first_parents = torch.full_like(levels[0].origins, -1)
    parents = torch.cat([first_parents, *(beams.origins + index * width for index, beams in enumerate(levels[1:]))], 1)
    joint = torch.cat([beams.joint for beams in levels], 1)
    depths = first_numbers(len(levels), joint.device, 1).repeat_interleave(width)
    valid = joint > -torch.inf
    if binds(rows, len(levels)):
        valid = valid & within_limits(parents, depths, joint, rows)
    last = torch.where(valid, depths, 0).amax(1, keepdim=True)
    weights = torch.cat([beams.weights for beams in levels], 1)
    return TokenTree(
        tokens=torch.cat([beams.tokens for beams in levels], 1),
        parents=parents,
        depths=depths,
        joint_draft_log_probs=joint,
        ancestors=torch.cat([beams.ancestors for beams in levels if beams.ancestors is not None], 1),
        winner=weights.masked_fill(~valid | (depths < last), -torch.inf).argmax(1),
        valid=valid,
        carried=torch.cat([beams.carried for beams in levels], 1),
        depth=len(levels),
    )


@between_calls
def _winner_chain(levels: list[Beams], rows: RowControls) -> tuple[TokenTree, Tensor]:
    """The winner of the beams as a tree of one path, and its nodes among all, `[batch, gamma]` int64."""
    tree = assemble_tree(levels, rows)
    path, _ = path_to(tree, tree.winner)
    is_there, nodes = path >= 0, path.clamp(min=0)
    chain = chain_tree(
        tree.tokens.gather(1, nodes),
        tree.joint_draft_log_probs.gather(1, nodes),
        valid=is_there & tree.valid.gather(1, nodes),
        carried=is_there & tree.carried.gather(1, nodes),
    )
    return chain, path
