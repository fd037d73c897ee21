"""What a draft of some cost and overlap brings, before it is tried."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mtad.config import DistillOptions
from mtad.distill.shapes import DraftShape
from mtad.distill.vocabulary import choose_vocabulary, serve_student, thin_head, trim_draft
from mtad.errors import DistillError
from mtad.models.intersection import VocabularyMap
from mtad.models.loading import LoadedModels
from mtad.models.packed_linear import pack_linears
from mtad.models.runner import ModelRunner
from mtad.structures import TokenTree

TYPICAL_OVERLAPS: Mapping[str, float] = {"nano": 0.45, "small": 0.53, "base": 0.61}
"""What drafts of these sizes reached for SmolLM2-135M-Instruct; for other targets the order matters, not the figure."""
LONGEST_DRAFT = 8
VERIFIED_NODES = (1, 2, 3, 4, 8, 9, 16)
"""Drafted tokens whose verification is timed: chains, and trees of three and four beams."""
_CONTEXT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCosts:
    """Times of one pair at batch 1, the target's call for one token being 1.

    Attributes:
        target_ms: That call.
        draft: One call of the draft for one token.
        draft_level: One call of the draft for a level of three beams.
        verify: The target's call for 1 + n tokens, by n of `VERIFIED_NODES`.
    """

    target_ms: float
    draft: float
    draft_level: float
    verify: dict[int, float]


def expected_tokens(overlap: float, gamma: int) -> float:
    """Tokens of one call when each of `gamma` drafted tokens in a row is kept with probability `overlap`.

    (1 - a^(gamma + 1)) / (1 - a), as in Leviathan et al. 2023.
    """
    return float(sum(overlap**depth for depth in range(gamma + 1)))


def predicted_speedup(tokens_per_call: float, draft_cost: float, verify_cost: float, gamma: int) -> float:
    """Speed against the target alone: tokens of a call by verify + gamma * draft, in calls of the target."""
    return tokens_per_call / (verify_cost + gamma * draft_cost)


def best_length(overlap: float, costs: PairCosts) -> tuple[int, float]:
    """The chain length with the largest predicted speed-up, and that speed-up."""
    found = [
        (predicted_speedup(expected_tokens(overlap, gamma), costs.draft, verify, gamma), gamma)
        for gamma, verify in costs.verify.items()
        if gamma <= LONGEST_DRAFT
    ]
    speedup, gamma = max(found)
    return gamma, speedup


@torch.inference_mode()
def measure_costs(target: ModelRunner, drafts: Sequence[ModelRunner], repeats: int) -> list[PairCosts]:
    """Time calls of a target and of several drafts in turns; medians.

    Args:
        target: The large model.
        drafts: Small ones.
        repeats: Rounds.
    """
    calls: dict[tuple[Any, ...], Callable[[], Any]] = {("target",): _call(target, 0)}
    calls |= {("verify", gamma): _call(target, gamma) for gamma in VERIFIED_NODES}
    calls |= {("draft", index): _call(draft, 0) for index, draft in enumerate(drafts) if draft is not target}
    calls |= {("level", index): _call(draft, 2) for index, draft in enumerate(drafts) if draft is not target}
    for runner in {id(item): item for item in (target, *drafts)}.values():
        _prepare(runner)
    samples: dict[tuple[Any, ...], list[float]] = {key: [] for key in calls}
    for repeat in range(repeats + 1):
        for key, call in calls.items():
            seconds = _seconds(call, target.device)
            if repeat:
                samples[key].append(seconds)
    medians = {key: statistics.median(values) for key, values in samples.items()}
    base = medians[("target",)]
    return [
        PairCosts(
            target_ms=1000 * base,
            draft=medians.get(("draft", index), base) / base,
            draft_level=medians.get(("level", index), medians[("verify", 2)]) / base,
            verify={gamma: medians[("verify", gamma)] / base for gamma in VERIFIED_NODES},
        )
        for index in range(len(drafts))
    ]


def choose_size(models: LoadedModels, options: DistillOptions, repeats: int = 7) -> tuple[str, dict[str, float]]:
    """The named size with the largest predicted speed-up here, and every size's.

    Args:
        models: The target.
        options: Vocabulary and head of the drafts.
        repeats: Rounds of timing drafts with random weights.

    Raises:
        DistillError: No named size is wider than the rank of the head.
    """
    shapes = [DraftShape.parse(name) for name in TYPICAL_OVERLAPS]
    shapes = [shape for shape in shapes if options.head_rank is None or shape.hidden > options.head_rank]
    if not shapes:
        raise DistillError(f"got --head-rank {options.head_rank}, which no named size is wider than; lower it")
    vocabulary = None if options.vocab is None else choose_vocabulary(models, None, options.vocab)
    drafts = [_random_draft(models, shape, vocabulary, options.head_rank) for shape in shapes]
    costs = measure_costs(models.target, drafts, repeats)
    predicted = {
        shape.name: best_length(TYPICAL_OVERLAPS[shape.name], cost)[1]
        for shape, cost in zip(shapes, costs, strict=True)
    }
    return max(predicted, key=lambda name: predicted[name]), predicted


def _random_draft(
    models: LoadedModels, shape: DraftShape, vocabulary: VocabularyMap | None, head_rank: int | None
) -> ModelRunner:
    dtype, device = getattr(torch, models.options.dtype), models.target.device
    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_config(shape.config(models.target.config))  # type: ignore[no-untyped-call]
    if vocabulary is not None:
        trim_draft(model, vocabulary)
    if head_rank is not None:
        thin_head(model, head_rank)
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    pack_linears(model)
    return serve_student(model, models.target.vocab_size, vocabulary)


def _prepare(runner: ModelRunner) -> None:
    runner.allocate(1, _CONTEXT + VERIFIED_NODES[-1] + 2)
    tokens = torch.zeros(1, _CONTEXT, dtype=torch.int64, device=runner.device)
    runner.prefill(tokens, torch.tensor([_CONTEXT], device=runner.device))


def _call(runner: ModelRunner, gamma: int) -> Callable[[], Any]:
    tree, pending = chain_tree(gamma, runner.device), torch.zeros(1, dtype=torch.int64, device=runner.device)
    return lambda: runner.score_tree(pending, tree)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def chain_tree(gamma: int, device: torch.device) -> TokenTree:
    """A chain of `gamma` tokens, whatever they are, for timing."""
    order = torch.arange(gamma, device=device).unsqueeze(0)
    return TokenTree(
        tokens=torch.zeros_like(order),
        parents=order - 1,
        depths=order + 1,
        joint_draft_log_probs=torch.zeros_like(order, dtype=torch.float32),
        ancestors=(2 << order) - 1,
        winner=torch.full((1,), gamma - 1, device=device),
        valid=torch.ones_like(order, dtype=torch.bool),
        carried=torch.zeros_like(order, dtype=torch.bool),
    )
