"""How many texts are sampled at a time and how many tokens are trained on at a time, where the user does not say."""

import torch

from mtad.config import DistillOptions
from mtad.config.distillation import CPU_BATCH_TOKENS, CPU_SAMPLING_BATCH, CUDA_BATCH_TOKENS, CUDA_SAMPLING_BATCH
from mtad.distill.fast_sampling import samples_fast
from mtad.models.cached_rows import captured_slots
from mtad.models.runner import ModelRunner

_CACHE_SHARE = 0.35
"""Of the device's memory, at most for the keys of the texts that are sampled."""
_FEWEST_TEXTS = 16


def choose_batches(target: ModelRunner, options: DistillOptions) -> dict[str, int]:
    """`sampling_batch` and `batch_tokens`, as the user said or as they suit the device.

    Args:
        target: Where it is decides.
        options: What the user said.
    """
    texts = _texts_that_fit(target, options) if samples_fast(target) else CPU_SAMPLING_BATCH
    tokens = CUDA_BATCH_TOKENS if target.device.type == "cuda" else CPU_BATCH_TOKENS
    return {"sampling_batch": options.sampling_batch or texts, "batch_tokens": options.batch_tokens or tokens}


def _texts_that_fit(target: ModelRunner, options: DistillOptions) -> int:
    memory = torch.cuda.get_device_properties(target.device).total_memory
    text_bytes = captured_slots(options.prompt_tokens + options.answer_tokens + 1) * target.slot_bytes
    count = CUDA_SAMPLING_BATCH
    while count > _FEWEST_TEXTS and count * text_bytes > _CACHE_SHARE * memory:
        count //= 2
    return count
