"""What a draft is worth: tokens of one call of the target, with the methods that people use."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mtad.api import Engine
from mtad.config import GenerationOptions
from mtad.distill.vocabulary import serve_student
from mtad.models.intersection import VocabularyMap
from mtad.models.loading import LoadedModels

METHODS: dict[str, dict[str, Any]] = {
    "mmtad": {"method": "mmtad"},
    "mmtad, gamma 4, width 4, tau 0.9": {"method": "mmtad", "gamma": 4, "beam_width": 4, "threshold": 0.9},
    "speculative": {"method": "speculative"},
}
_PROMPTS, _TOKENS, _BATCH = 16, 64, 8
_CUDA_BATCH = 16


def tokens_per_call(
    models: LoadedModels,
    draft: Any,
    prompts: Sequence[list[int]],
    vocabulary: VocabularyMap | None = None,
    count: int = _PROMPTS,
    labels: Sequence[str] = tuple(METHODS),
) -> dict[str, float]:
    """Emitted tokens by calls of the target, for every method of `METHODS`.

    Args:
        models: The target, with tree attention.
        draft: A copy in the target's dtype is used.
        prompts: Token ids.
        vocabulary: Where the draft has some of the target's tokens only.
        count: The first so many prompts are answered.
        labels: Which of `METHODS`.
    """
    dtype = getattr(torch, models.options.dtype)
    runner = serve_student(copy.deepcopy(draft).to(dtype).eval(), models.target.vocab_size, vocabulary)
    engine = Engine(replace(models, draft=runner))
    batch_size = _CUDA_BATCH if models.target.device.type == "cuda" else _BATCH
    found = {}
    for label in labels:
        limit = min(_TOKENS, (models.target.max_positions or 2**30) - max(len(item) for item in prompts) - 1)
        options = replace(GenerationOptions(max_new_tokens=max(limit, 1)).for_measurement(), **METHODS[label])
        results = engine.generate(list(prompts[:count]), options, batch_size=batch_size)
        calls = sum(item.stats.target_calls for item in results)
        found[label] = sum(item.stats.num_tokens for item in results) / max(calls, 1)
    return found
