"""Per-row settings and positions on the device."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtad.structures.constraints import UNCONSTRAINED, RowConstraints
from mtad.structures.tree import MAX_TREE_NODES

_Noun = TypeVar("_Noun")

LOWEST_TEMPERATURE = 1e-6
"""Below this, float32 logits cannot be told apart, and dividing by it would overflow."""

_LEAST_MASS = 1e-30
"""A nucleus of less holds the most likely token alone just the same, and float32 tells this from nothing."""
_ALMOST_ALL = 1 - 1e-6
"""Above this, float32 may make one of a nucleus's mass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowControls:
    """What may differ from row to row of a batch, as tensors of shape `[batch]`.

    Temperature 0 is resolved before this point (`from_settings`): `is_greedy` marks the row, and its warp is
    either none at all (joint rules score with unfiltered temperature-1 probabilities) or one-hot.

    Attributes:
        seeds: Seed of the row's random draws, int64.
        positions: Committed tokens of the row when the iteration starts, int64; the draws' counter.
        is_greedy: Rows decoded at temperature 0, bool.
        temperatures: Softmax temperature of the warp, at least `LOWEST_TEMPERATURE`, float32.
        top_ks: Highest-probability tokens kept, int64; 0 keeps all.
        top_ps: Nucleus mass kept, in (0, 1] and above 0 in float32 too.
        min_ps: Share of the most likely token's probability that a token needs, in [0, 1], float32.
        log_thresholds: Natural log of tau in (0, 1], float32.
        depth_limits: Deepest level drafted, int64.
        log_confidences: Natural log of the joint draft probability that a node needs to have children, float32.
        is_strict: Rows inside a span that only the target's own tokens may fill, bool.
        max_top_k: Largest of `top_ks`, or 0 when any row keeps all; known on the host.
        has_some_top_k: Whether any row filters by top-k; known on the host.
        has_top_p: Whether any row has `top_ps` below 1; known on the host.
        has_min_p: Whether any row has `min_ps` above 0; known on the host.
        has_mixed_top_k: Whether rows may differ in `top_ks`; known on the host.
        has_full_top_p: Whether any row may have `top_ps` of 1; known on the host.
        deepest: Largest of `depth_limits`; known on the host.
        shallowest: None of `depth_limits` is smaller; known on the host.
        has_confidence: Whether any row stops where its draft is unsure; known on the host.
        noise: What `mtad.sampling.draw_ahead` drew for these positions, `[batch, purposes, count]` float64.
    """

    seeds: Tensor
    positions: Tensor
    is_greedy: Tensor
    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    log_thresholds: Tensor
    depth_limits: Tensor
    log_confidences: Tensor
    is_strict: Tensor
    max_top_k: int
    has_some_top_k: bool
    has_top_p: bool
    has_min_p: bool = False
    has_mixed_top_k: bool = True
    has_full_top_p: bool = True
    deepest: int = MAX_TREE_NODES
    shallowest: int = 0
    has_confidence: bool = False
    noise: Tensor | None = None

    def at(self, positions: Tensor) -> "RowControls":
        """The same rows at other positions, `[batch]` int64."""
        return replace(self, positions=positions, noise=None)

    def limited(self, depth_limits: list[int]) -> "RowControls":
        """The same rows with other limits of the draft's depth, one a row."""
        limits = torch.tensor(depth_limits, dtype=torch.int64, device=self.seeds.device)
        return replace(self, depth_limits=limits, deepest=max(depth_limits), shallowest=min(depth_limits))

    def all_unsure(self, joint_draft_log_probs: Tensor) -> bool:
        """Whether no row would give any of these nodes children, `[batch, nodes]` natural log.

        Only asked where reading costs nothing: an accelerator would stall, and drafts on to keep its shapes.
        """
        if not self.has_confidence or joint_draft_log_probs.device.type != "cpu":
            return False
        return bool((joint_draft_log_probs < self.log_confidences.unsqueeze(1)).all())

    def select(self, rows: Tensor) -> "RowControls":
        """The named rows only, `[kept]` int64."""
        columns = ((item.name, getattr(self, item.name)) for item in fields(self))
        picked: dict[str, Any] = {name: value[rows] for name, value in columns if isinstance(value, Tensor)}
        return replace(self, **picked)

    @classmethod
    def from_settings(
        cls, settings: "list[RowSettings]", *, one_hot_at_zero: bool, device: torch.device | str = "cpu"
    ) -> "RowControls":
        """Put one setting per row on the device, at position 0.

        Args:
            settings: One entry per row.
            one_hot_at_zero: Temperature 0 means a one-hot distribution (lossless rules) instead of unfiltered
                temperature-1 probabilities (joint rules).
            device: Where the tensors live.
        """
        warps = [setting.resolve_zero_temperature(one_hot_at_zero=one_hot_at_zero) for setting in settings]

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            seeds=column([setting.seed for setting in settings], torch.int64),
            positions=torch.zeros(len(settings), dtype=torch.int64, device=device),
            is_greedy=column([setting.temperature == 0 for setting in settings], torch.bool),
            temperatures=column([max(warp.temperature, LOWEST_TEMPERATURE) for warp in warps], torch.float32),
            top_ks=column([warp.top_k for warp in warps], torch.int64),
            top_ps=column([max(warp.top_p, _LEAST_MASS) for warp in warps], torch.float32),
            min_ps=column([warp.min_p for warp in warps], torch.float32),
            log_thresholds=column([setting.threshold for setting in settings], torch.float64).log().float(),
            depth_limits=column([MAX_TREE_NODES for _ in settings], torch.int64),
            log_confidences=column([_log(setting.draft_confidence) for setting in settings], torch.float32),
            is_strict=column([False for _ in settings], torch.bool),
            max_top_k=0 if any(warp.top_k == 0 for warp in warps) else max(warp.top_k for warp in warps),
            has_some_top_k=any(warp.top_k > 0 for warp in warps),
            has_top_p=any(warp.top_p < 1 for warp in warps),
            has_min_p=any(warp.min_p > 0 for warp in warps),
            has_mixed_top_k=len({warp.top_k for warp in warps}) > 1,
            has_full_top_p=any(warp.top_p > _ALMOST_ALL for warp in warps),
            shallowest=MAX_TREE_NODES,
            has_confidence=any(setting.draft_confidence > 0 for setting in settings),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """One row's settings on the host.

    `temperature` and `top_k` are at least 0, `top_p` and `threshold` in (0, 1], `draft_confidence` in [0, 1), and
    `min_p` in [0, 1].

    Attributes:
        constraints: What changes the logits before the warp, as the text goes on.
        top_logprobs: How many of the target's best tokens are reported beside every emitted one.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    threshold: float = 0.5
    draft_confidence: float = 0.0
    min_p: float = 0.0
    constraints: RowConstraints = UNCONSTRAINED
    top_logprobs: int = 0

    def resolve_zero_temperature(self, *, one_hot_at_zero: bool) -> "RowSettings":
        """The warp to apply: unchanged above temperature 0, else one-hot (`top_k` 1) or no filter at all."""
        if self.temperature > 0:
            return self
        return replace(self, temperature=1.0, top_k=1 if one_hot_at_zero else 0, top_p=1.0, min_p=0.0)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def merge_rows(is_ours: Tensor, ours: _Noun, theirs: _Noun) -> _Noun:
    """`ours` in the rows where `is_ours` holds, `theirs` elsewhere.

    Args:
        is_ours: `[batch]` bool.
        ours: A dataclass of tensors that lead with the batch, of such dataclasses, of flags, or of None.
        theirs: Another of the same type; a field that is None in either is None in the result, a flag holds where
            it holds in both.
    """

    def merged(our: Any, their: Any) -> Any:
        if our is None or their is None:
            return None
        if isinstance(our, bool):
            return our and their
        if isinstance(our, Tensor):
            return torch.where(is_ours.view(-1, *[1] * (our.dim() - 1)), our, their)
        return merge_rows(is_ours, our, their)

    values = {item.name: merged(getattr(ours, item.name), getattr(theirs, item.name)) for item in fields(ours)}  # type: ignore[arg-type]
    return type(ours)(**values)
