"""The settings of training a draft."""

import re
from dataclasses import dataclass
from typing import Literal

from mtad.config.fields import check_settings, setting
from mtad.errors import ConfigError

SIZE_NAMES = ("nano", "small", "base")
CPU_SAMPLING_BATCH, CUDA_SAMPLING_BATCH = 32, 2048
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 4096, 16384
TOKENS = 2_000_000
"""Sampled where neither a number nor a time budget says how many."""
_SIZE = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,2}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """How a draft is made for a target."""

    size: tuple[str, ...] = setting(
        tuple,
        ("small",),
        "draft to train: nano, small, base, HIDDENxLAYERS such as 192x3, or auto; may be given several times, and all "
        "share the target's work",
    )
    tokens: int | None = setting(
        int,
        None,
        "tokens of text to sample from the target (default: 2,000,000, or what the time budget allows)",
        minimum=1,
    )
    init: str = setting(
        str,
        "pca",
        "how the draft begins: pca (embeddings are the target's principal components), layers (the target's own, "
        "evenly spaced), random, or the folder of a draft, in which {size} stands for the name of the size",
    )
    loss: Literal["kl", "tv", "acceptance"] = setting(
        str, "kl", "what is lowered, on the target's whole distribution", choices=("kl", "tv", "acceptance")
    )
    on_policy: float = setting(
        float,
        0.0,
        "share of the training, at its end, in which the draft also learns the target's distribution behind beams of "
        "its own",
        minimum=0,
        maximum=1,
    )
    vocab: int | None = setting(
        int,
        None,
        "tokens of the draft: the most frequent of the sampled text (default: all of the target's)",
        minimum=16,
    )
    head_rank: int | None = setting(
        int,
        None,
        "output head of this rank, in two thin matrices that mtad alone uses (default: a whole one)",
        minimum=1,
    )
    time_budget: str | None = setting(
        str, None, "time for everything, such as 90s, 8m or 2h; the learning rate has decayed by then"
    )
    epochs: int = setting(int, 3, "passes over the sampled text, unless the time budget ends first", minimum=1)
    self_written: float = setting(
        float,
        0.3,
        "share of the prompts that the target writes itself in its user's turn (all of them without --prompts)",
        minimum=0,
        maximum=1,
    )
    prompt_tokens: int = setting(int, 256, "longest prompt; longer ones are left out", minimum=1)
    answer_tokens: int = setting(int, 192, "longest sampled answer", minimum=2)
    sampling_batch: int | None = setting(
        int,
        None,
        f"texts sampled at a time (default: {CPU_SAMPLING_BATCH} on the CPU, on CUDA up to {CUDA_SAMPLING_BATCH}, as "
        "the memory allows)",
        minimum=1,
        maximum=8192,
    )
    batch_tokens: int | None = setting(
        int,
        None,
        f"tokens of one training batch, padding included (default: {CPU_BATCH_TOKENS} on the CPU, {CUDA_BATCH_TOKENS} "
        "on CUDA)",
        minimum=16,
    )
    accumulation: int = setting(int, 1, "batches whose gradients are added up for one step", minimum=1)
    learning_rate: float = setting(float, 2e-3, "largest learning rate of AdamW", above=0, maximum=1)
    seed: int = setting(int, 0, "seed of sampling, beginnings and order", minimum=0, maximum=2**62)

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.size:
            raise ConfigError(f"size must name at least one draft, got none; choose from {', '.join(SIZE_NAMES)}")
        for name in self.size:
            if name not in (*SIZE_NAMES, "auto") and not _SIZE.fullmatch(name):
                raise ConfigError(
                    f"size must be {', '.join(SIZE_NAMES)}, auto or HIDDENxLAYERS such as 192x3, got {name!r}"
                )
        _ = self.budget_s

    def init_for(self, size: str) -> str:
        """How the draft of one size begins."""
        return self.init.replace("{size}", size)

    @property
    def budget_s(self) -> float | None:
        """The time budget in seconds; None where there is none."""
        if self.time_budget is None:
            return None
        found = _DURATION.fullmatch(self.time_budget)
        if found is None or float(found[1]) == 0:
            raise ConfigError(f"time_budget must be a time such as 90s, 8m or 2h, got {self.time_budget!r}")
        return float(found[1]) * _SECONDS[found[2]]
