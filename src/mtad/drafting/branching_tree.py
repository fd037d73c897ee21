"""A tree of fixed shape whose children are drawn from the draft's distributions."""

import torch
from torch import Tensor

from mtad.drafting.ranking import ranking_log_probs
from mtad.models.runner import ModelRunner
from mtad.sampling import Stream, draw_categorical, draw_without_replacement, uniform
from mtad.structures.acceptance import Acceptance
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree, ancestor_bitmask


class BranchingTreeDrafter:
    """Draws the same number of children for every node of a depth.

    With replacement the children of a node are independent draws (SpecInfer's expansion configurations, Miao et al.,
    ASPLOS 2024); without replacement no token repeats among siblings (RSD-C, Jeon et al. 2024; multi-candidate
    sampling, Yang et al. 2024). Greedy rows take the most likely children and are scored by unfiltered temperature-1
    probabilities. Where fewer tokens than children are left, the missing nodes are not valid.

    Args:
        runner: The auxiliary model.
        branching: Children of every node by depth, root first, e.g. (4, 2, 2); at most 64 nodes in all.
        with_replacement: How siblings are drawn.
    """

    def __init__(self, runner: ModelRunner, branching: tuple[int, ...], *, with_replacement: bool) -> None:
        self.runner: ModelRunner = runner
        self.branching = branching
        self.with_replacement = with_replacement
        self.gamma = len(branching)
        parents, depths = _layout(branching)
        self.num_nodes = len(parents)
        self.num_slots = self.num_nodes + 1
        self._parents = torch.tensor([parents], device=runner.device)
        self._depths = torch.tensor(depths, device=runner.device)
        self._ancestors = ancestor_bitmask(self._parents, self.gamma)

    def draft(self, previous: Tensor, pending: Tensor, rows: RowControls) -> TokenTree:
        """See `Drafter.draft`; the tree carries `draft_log_probs` and `branching`."""
        logits = self.runner.score_root(previous, pending).unsqueeze(1)
        joint = torch.zeros_like(logits[..., 0])
        tokens, joints, distributions = [], [], []
        first_node = 0
        for depth, count in enumerate(self.branching, start=1):
            distribution = ranking_log_probs(logits, rows)
            children = self._draw(distribution, rows, depth, count)
            picks = children.clamp(min=0)
            step = distribution.gather(-1, picks).masked_fill(children < 0, -torch.inf)
            joint = (joint.unsqueeze(-1) + step).flatten(1)
            tokens.append(picks.flatten(1))
            joints.append(joint)
            distributions.append(distribution.repeat_interleave(count, 1))
            end_node = first_node + joint.shape[1]
            if depth < self.gamma:
                bits = self._ancestors[:, first_node:end_node].expand_as(tokens[-1])
                logits = self.runner.score_level(tokens[-1], bits, first_node, depth)
            first_node = end_node
        return self._assemble(torch.cat(tokens, 1), torch.cat(joints, 1), torch.cat(distributions, 1))

    def keep_path(self, acceptance: Acceptance, active: Tensor) -> None:
        """See `Drafter.keep_path`."""
        self.runner.keep_path(acceptance.path_nodes, acceptance.num_accepted, active)

    def _draw(self, log_probs: Tensor, rows: RowControls, depth: int, count: int) -> Tensor:
        """Children of every node of `[batch, parents, vocab]`: `[batch, parents, count]`, -1 where none is left."""
        batch, parents, vocab = log_probs.shape
        uniforms = uniform(rows, Stream.DRAFT, depth, parents * count).reshape(-1, count)
        draw = draw_categorical if self.with_replacement else draw_without_replacement
        drawn = draw(log_probs.reshape(-1, vocab), uniforms).view(batch, parents, count)
        values, best = log_probs.topk(min(count, vocab), dim=-1)
        best = torch.where(values == -torch.inf, -1, best)
        best = torch.nn.functional.pad(best, (0, count - best.shape[-1]), value=-1)
        return torch.where(rows.is_greedy.view(-1, 1, 1), best, drawn)

    def _assemble(self, tokens: Tensor, joint: Tensor, distributions: Tensor) -> TokenTree:
        above_last = self._depths < self.gamma
        return TokenTree(
            tokens=tokens,
            parents=self._parents.expand_as(tokens),
            depths=self._depths,
            joint_draft_log_probs=joint,
            ancestors=self._ancestors.expand_as(tokens),
            winner=joint.masked_fill(above_last, -torch.inf).argmax(1),
            valid=joint > -torch.inf,
            carried=torch.zeros_like(tokens, dtype=torch.bool),
            draft_log_probs=distributions,
            branching=self.branching,
            has_replacement=self.with_replacement,
            depth=self.gamma,
        )


def _layout(branching: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Parent and depth of every node, in level order."""
    level = [-1]
    parents: list[int] = []
    depths: list[int] = []
    for depth, count in enumerate(branching, start=1):
        first_node = len(parents)
        parents += [parent for parent in level for _ in range(count)]
        level = list(range(first_node, len(parents)))
        depths += [depth] * len(level)
    return parents, depths
