"""A tree that grows where the draft is sure of itself."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtad.drafting.beams import Beams, carry_finished, is_any_of
from mtad.drafting.ranking import ranking_log_probs
from mtad.models.runner import ModelRunner
from mtad.sampling import Candidates
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, ancestor_bitmask, node_bits


class DynamicTreeDrafter:
    """Grows a tree by joint draft probability and keeps its most probable nodes (EAGLE-2, Li et al., EMNLP 2024).

    Every depth expands its `width` most probable nodes; of all children seen, at every depth, the `num_nodes` most
    probable ones become the tree. A child is never more probable than its parent, so parents are kept with their
    children. Deterministic: the tree carries no distributions, and sampling rules cannot judge it. The winner is the
    most probable node of the deepest level kept. Greedy rows are scored by unfiltered temperature-1 probabilities.

    A node that ends in EOS is carried on, not expanded, so that a finished answer competes with the longest ones;
    its copies below the deepest level of the other nodes are not valid.

    Args:
        runner: The auxiliary model.
        gamma: Depth, at least 1.
        width: Nodes expanded per depth.
        node_budget: Nodes kept, at most 64; fewer where the tree has fewer.
        eos_token_ids: Tokens that end an answer, `[count]` int64.
    """

    def __init__(self, runner: ModelRunner, gamma: int, width: int, node_budget: int, eos_token_ids: Tensor) -> None:
        self.runner: ModelRunner = runner
        self.gamma = gamma
        self.width = width
        self.eos_token_ids = eos_token_ids
        self.num_children = min(node_budget, runner.vocab_size)
        num_grown = self.num_children * (1 + (gamma - 1) * min(width, self.num_children))
        self.num_nodes = min(node_budget, num_grown)
        self.num_slots = gamma * width + 1
        self._draft_slots: Tensor | None = None

    def draft(self, previous: Tensor, pending: Tensor, rows: RowControls) -> TokenTree:
        """See `Drafter.draft`."""
        grown = self._grow(previous, pending, rows)
        picks = most_probable(grown.joint, self.num_nodes).sort(1).values
        self._draft_slots = grown.draft_slots.gather(1, picks)
        kept = first_numbers(self.num_nodes, picks.device).expand_as(picks)
        renumbered = torch.full_like(grown.parents, -1).scatter(1, picks, kept)
        old_parents = grown.parents.gather(1, picks)
        parents = torch.where(old_parents < 0, -1, renumbered.gather(1, old_parents.clamp(min=0)))
        joint, carried = grown.joint.gather(1, picks), grown.carried.gather(1, picks)
        depths = grown.depths.gather(1, picks)
        valid = joint > -torch.inf
        deepest = torch.where(valid & ~carried, depths, 0).amax(1, keepdim=True)
        valid = valid & (depths <= deepest)
        return TokenTree(
            tokens=grown.tokens.gather(1, picks),
            parents=parents,
            depths=depths,
            joint_draft_log_probs=joint,
            ancestors=ancestor_bitmask(parents, self.gamma),
            winner=joint.masked_fill(~valid | (depths < deepest), -torch.inf).argmax(1),
            valid=valid,
            carried=carried,
            depth=self.gamma,
        )

    def keep_path(self, acceptance: Acceptance, active: Tensor) -> None:
        """See `Drafter.keep_path`; a kept node that was never expanded is fed with the next root."""
        assert self._draft_slots is not None, "draft() comes before keep_path()"
        path = self._draft_slots.gather(1, acceptance.path_nodes.clamp(min=0))
        self.runner.keep_path(path, acceptance.num_accepted, active)

    def _grow(self, previous: Tensor, pending: Tensor, rows: RowControls) -> "_GrownTree":
        """All children of the expanded nodes of every depth."""
        logits = self.runner.score_root(previous, pending).unsqueeze(1)
        frontier = Beams.root(logits)
        bits = torch.zeros_like(frontier.tokens)
        levels = [self._children(frontier, logits, rows)]
        expanded: list[Tensor] = []
        first_slot = 0
        for depth in range(1, self.gamma):
            picks = most_probable(levels[-1].joint, self.width)
            expanded.append(picks)
            frontier = _select(levels[-1], picks)
            own_bits = node_bits(first_slot, picks.shape[1], bits.device)
            bits = bits.gather(1, frontier.origins) | own_bits
            logits = self.runner.score_level(frontier.tokens, bits, first_slot, depth)
            first_slot += picks.shape[1]
            levels.append(self._children(frontier, logits, rows))
        return _join(levels, expanded)

    def _children(self, frontier: Beams, logits: Tensor, rows: RowControls) -> Beams:
        """The most likely children of every node of the frontier, `num_children` each; weights are not used."""
        token_ids = logits.topk(self.num_children, dim=-1).indices
        log_probs = ranking_log_probs(logits, rows).gather(-1, token_ids)
        step, tokens = carry_finished(frontier, Candidates(log_probs, token_ids, logits.shape[-1]))
        origins = first_numbers(step.shape[1], step.device).repeat_interleave(self.num_children)
        tokens, origins = tokens.flatten(1), origins.expand(len(step), -1)
        joint = (frontier.joint.unsqueeze(-1) + step).flatten(1)
        carried = frontier.finished.gather(1, origins)
        finished = carried | is_any_of(tokens, self.eos_token_ids)
        return Beams(tokens, origins, joint, joint, finished, carried)


@dataclass(slots=True)
class _GrownTree:
    """Every node seen while growing, in level order; all tensors are `[batch, nodes]`."""

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    joint: Tensor
    carried: Tensor
    draft_slots: Tensor


def most_probable(joint: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of each row, or of all; the first of equals, which is the parent of the others."""
    return joint.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _select(level: Beams, picks: Tensor) -> Beams:
    names = ("tokens", "origins", "weights", "joint", "finished", "carried")
    columns: dict[str, Any] = {name: getattr(level, name).gather(1, picks) for name in names}
    return Beams(**columns)


def _join(levels: list[Beams], expanded: list[Tensor]) -> _GrownTree:
    """Number the nodes of all levels; an expanded node also has a slot in the draft's cache, the others have 0."""
    parents = [torch.full_like(levels[0].origins, -1)]
    slots = []
    first_node = first_slot = 0
    for level, picks, children in zip(levels, expanded, levels[1:], strict=False):
        parents.append((picks + first_node).gather(1, children.origins))
        own_slots = first_numbers(picks.shape[1], picks.device, first_slot).expand_as(picks)
        slots.append(torch.zeros_like(level.tokens).scatter(1, picks, own_slots))
        first_node += level.tokens.shape[1]
        first_slot += picks.shape[1]
    slots.append(torch.zeros_like(levels[-1].tokens))
    depths = [torch.full_like(level.tokens, depth) for depth, level in enumerate(levels, start=1)]
    return _GrownTree(
        tokens=torch.cat([level.tokens for level in levels], 1),
        parents=torch.cat(parents, 1),
        depths=torch.cat(depths, 1),
        joint=torch.cat([level.joint for level in levels], 1),
        carried=torch.cat([level.carried for level in levels], 1),
        draft_slots=torch.cat(slots, 1),
    )
