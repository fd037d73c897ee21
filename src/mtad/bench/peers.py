"""The decoding of transformers itself, measured on the same prompts."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from mtad.api.traffic import call_traffic
from mtad.bench.workloads import SpeedWorkload

TRANSFORMERS_ASSISTED = "transformers_assisted"
TRANSFORMERS_STATIC = "transformers_static"
LLAMA_CPP = "llama_cpp"
PEER_NAMES = ("transformers", TRANSFORMERS_STATIC, TRANSFORMERS_ASSISTED, LLAMA_CPP)
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSample:
    """What one batch cost and gave.

    Attributes:
        prefill_s: Wall seconds until the first token could be decoded; for transformers, the first token included.
        decode_s: Wall seconds of the rest.
        num_decoded: Tokens that were decoded in `decode_s`, whole batch.
        num_tokens: Tokens of the answers.
        log_prob_sum: Sum of their natural log-probabilities under the unwarped temperature-1 target.
        target_calls: Decode calls of the target per answer, summed; None where they are not counted.
        num_iterations: Decode calls of the target, a batch's call counted once; None where they are not counted.
        floor_bytes: Bytes of weights, keys and values that the decoding had to read; None where it is not known.
    """

    prefill_s: float
    decode_s: float
    num_decoded: int
    num_tokens: int
    log_prob_sum: float
    target_calls: int | None
    num_iterations: int | None = None
    floor_bytes: int | None = None


class TransformersPeer:
    """`generate` of transformers, alone or assisted by the draft.

    Args:
        target: A stock model.
        assistant: The draft for assisted generation; None samples token by token.
        gamma: Tokens that the draft proposes at a time.
        top_k: Most likely tokens kept, 0 keeps all.
        top_p: Nucleus mass kept.
        has_static_cache: Decode over a cache of fixed size, with a model that transformers compiles on CUDA devices.
    """

    def __init__(
        self,
        target: Any,
        assistant: Any | None,
        gamma: int,
        *,
        top_k: int,
        top_p: float,
        has_static_cache: bool = False,
    ) -> None:
        self.target = target
        self.assistant = assistant
        self._filters = (top_k, top_p)
        self._has_static_cache = has_static_cache
        self._traffic = call_traffic(target)
        if assistant is not None:
            settings = assistant.generation_config
            settings.num_assistant_tokens = gamma
            settings.num_assistant_tokens_schedule = "constant"
            settings.assistant_confidence_threshold = 0.0

    def reason_against(self, workload: SpeedWorkload) -> str | None:
        """Why a workload cannot be measured; None where it can."""
        if self.assistant is not None and workload.batch_size > 1:
            return "transformers assists one prompt at a time"
        return None

    def run(self, prompts: list[list[int]], workload: SpeedWorkload, seed: int) -> SpeedSample:
        """Decode one batch; torch's own generator is seeded for it and put back afterwards."""
        device = self.target.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            settings = sampling_settings(workload, *self._filters)
            if self._has_static_cache:
                settings.cache_implementation = "static"
            return self._measure(prompts, settings)

    @torch.inference_mode()
    def score(self, prompts: list[list[int]], answers: list[list[int]]) -> float:
        """Sum of the log-probabilities of answers of one length under the unwarped temperature-1 target."""
        token_ids, mask = _pad_left(prompts, self.target.device)
        full = torch.cat([token_ids, torch.tensor(answers, device=token_ids.device)], 1)
        return self._log_prob_sum(full, mask, token_ids.shape[1])

    @torch.inference_mode()
    def _measure(self, prompts: list[list[int]], settings: GenerationConfig) -> SpeedSample:
        token_ids, mask = _pad_left(prompts, self.target.device)
        clock = _Clock()
        further = {} if self.assistant is None else {"assistant_model": self.assistant}
        with _quiet():
            answer = self.target.generate(
                token_ids, attention_mask=mask, generation_config=settings, streamer=clock, **further
            )
        ended = perf_counter()
        num_calls = answer.shape[1] - token_ids.shape[1]
        num_tokens = num_calls * len(prompts)
        context = float(mask.sum()) + num_tokens / 2
        return SpeedSample(
            prefill_s=clock.first - clock.started,
            decode_s=ended - clock.first,
            num_decoded=num_tokens - clock.num_first,
            num_tokens=num_tokens,
            log_prob_sum=self._log_prob_sum(answer, mask, token_ids.shape[1]),
            target_calls=None if self.assistant is not None else num_tokens,
            num_iterations=None if self.assistant is not None else num_calls,
            floor_bytes=None if self.assistant is not None else self._traffic.of_calls(num_calls, context),
        )

    def _log_prob_sum(self, answer: Tensor, mask: Tensor, start: int) -> float:
        """Of the tokens from column `start` of `answer`, `[batch, tokens]`; padding is left of the prompts."""
        full = torch.cat([mask, mask.new_ones(len(mask), answer.shape[1] - start)], 1)
        positions = (full.cumsum(1) - 1).clamp(min=0)
        logits = self.target(answer, attention_mask=full, position_ids=positions).logits[:, start - 1 : -1]
        log_probs = logits.double().log_softmax(-1).gather(-1, answer[:, start:].unsqueeze(-1))
        return float(log_probs.sum())


def sampling_settings(workload: SpeedWorkload, top_k: int, top_p: float) -> GenerationConfig:
    """What transformers is told, so that it samples as we do and every answer has the same length."""
    is_greedy = workload.temperature == 0
    filters = {} if is_greedy else {"temperature": workload.temperature, "top_k": top_k, "top_p": top_p}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=not is_greedy,
        max_new_tokens=workload.new_tokens,
        eos_token_id=_NO_TOKEN,
        pad_token_id=0,
        **filters,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers remarks on its own settings off the screen."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


class _Clock(BaseStreamer):
    """Notes when generation starts and when the first tokens are there."""

    def __init__(self) -> None:
        self.started = perf_counter()
        self.first = 0.0
        self.num_first = 0
        self._num_puts = 0

    def put(self, value: Tensor) -> None:
        self._num_puts += 1
        if self._num_puts == 2:  # the prompt comes first
            self.first = perf_counter()
            self.num_first = value.numel()

    def end(self) -> None:
        """Nothing is shown, so nothing ends."""


def _pad_left(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    token_ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return token_ids, mask
