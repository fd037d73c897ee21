"""The experiments that are evaluations: which tasks, contenders and settings each has unless others are asked for."""

from dataclasses import dataclass, field
from typing import Any

_GREEDY = "autoregressive:temperature=0"
_SHAPES = ((1, 1), (2, 2), (3, 3), (4, 1), (4, 4), (6, 4), (8, 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An experiment.

    Attributes:
        question: What it answers.
        tasks: Names of tasks.
        rules: Contenders.
        thresholds: For rules that read it.
        num_seeds: Seeds.
        needs_drafts: Whether several drafts are its point.
        decoding: Settings of all contenders.
        baseline: Contender that the experiment's own figure is against.
    """

    question: str
    tasks: tuple[str, ...]
    rules: tuple[str, ...]
    thresholds: tuple[float, ...] = ()
    num_seeds: int = 1
    needs_drafts: bool = False
    decoding: dict[str, Any] = field(default_factory=dict)
    baseline: str = "autoregressive"


PRESETS = {
    "quality": Preset(
        question="every method against single-token sampling on five tasks or more",
        tasks=("spider", "gsm8k", "xsum", "mt_bench", "wikitext"),
        rules=("autoregressive", _GREEDY, "beam_sampling", "speculative", "mtad", "mmtad"),
    ),
    "threshold": Preset(
        question="the dial: the threshold against speed, likelihood, score, length and diversity",
        tasks=("gsm8k", "wikitext"),
        rules=("autoregressive", "speculative", "mtad", "mmtad"),
        thresholds=(0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
        num_seeds=2,
    ),
    "auxiliary-size": Preset(
        question="drafts of several sizes, depths and widths, and the target's own first layers",
        tasks=("wikitext",),
        rules=(
            "autoregressive",
            "joint@early_exit",
            *(f"mmtad:gamma={gamma},beam_width={width}" for gamma, width in _SHAPES),
        ),
        needs_drafts=True,
    ),
    "approximation": Preset(
        question="the joint likelihood that a block reaches, as a share of the exact optimum's",
        tasks=("wikitext",),
        rules=("mtjd", "autoregressive", "speculative", "mtad", "mmtad"),
        decoding={
            "gamma": 4,
            "beam_width": 4,
            "max_new_tokens": 4,
            "temperature": 0.0,
            "ignore_eos": True,
            "search_budget": 65536,
        },
        baseline="mtjd",
    ),
}
