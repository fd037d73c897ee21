"""One iteration as plain data: what was drafted, what was kept, and why."""

import torch
from torch import Tensor

from mtad.structures import StepExplanation, StepRecord, path_to
from mtad.verification.base import joint_target_log_probs
from mtad.verification.joint import winner_reference


class StepExplainer:
    """An observer of the loop that explains the last iteration of any row.

    Args:
        rule: Name of the acceptance rule.
    """

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self._step: StepRecord | None = None
        self._joint_target = self._ratios = torch.zeros(0, 0)

    def observe(self, step: StepRecord) -> None:
        """See `StepObserver.observe`."""
        self._step = step
        self._joint_target = self._ratios = step.tree.joint_draft_log_probs
        if step.tree.num_nodes:
            self._joint_target = joint_target_log_probs(step.tree, step.target_log_probs)
            is_traced = self._rule == "joint"
            reference = winner_reference(step.tree) if is_traced else step.tree.joint_draft_log_probs
            self._ratios = self._joint_target - reference

    def take(self, row: int) -> StepExplanation | None:
        """What was seen of a row of the batch since `forget`; None where no iteration was seen."""
        step = self._step
        if step is None:
            return None
        tree, acceptance = step.tree, step.acceptance
        is_there = tree.valid[row] & ~tree.carried[row]
        nodes: list[int] = is_there.nonzero().squeeze(1).tolist()
        numbers = {-1: -1} | {node: number for number, node in enumerate(nodes)}

        def column(values: Tensor) -> list[float]:
            every: list[float] = values[row].tolist()
            return [every[node] for node in nodes]

        def path(places: Tensor) -> tuple[int, ...]:
            return tuple(numbers[node] for node in places[row].tolist() if node >= 0 and node in numbers)

        return StepExplanation(
            rule=self._rule,
            threshold=float(step.rows.log_thresholds[row].double().exp()),
            pending_token=int(step.pending[row]),
            tokens=tuple(map(int, column(tree.tokens))),
            parents=tuple(numbers[int(parent)] for parent in column(tree.parents)),
            depths=tuple(map(int, column(tree.depths))),
            joint_draft_log_probs=tuple(column(tree.joint_draft_log_probs)),
            joint_target_log_probs=tuple(column(self._joint_target)),
            joint_log_ratios=tuple(column(self._ratios)),
            winner_path=path(path_to(tree, tree.winner)[0]),
            kept_path=path(acceptance.path_nodes),
            next_token=int(acceptance.next_tokens[row]),
        )

    def forget(self) -> None:
        """Let go of what was seen."""
        self._step = None
