"""llama.cpp on the same prompts, through the wheel `xllamacpp`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mtad.bench.peers import SpeedSample
from mtad.bench.workloads import SpeedWorkload

Scorer = Callable[[list[list[int]], list[list[int]]], float]
"""Prompts and answers to the sum of the answers' log-probabilities under the target."""


class Server(Protocol):
    """llama.cpp, here or in a process of its own."""

    def make_room(self, num_rows: int, num_tokens: int) -> None:
        """Be ready for so many rows of so many tokens."""
        ...

    def complete(self, requests: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
        """Replies and the wall seconds that they took."""
        ...


class LlamaCppPeer:
    """Single-token sampling of llama.cpp's own server.

    Args:
        server: Where it runs.
        weights: A GGUF file of the target.
        score: Called with the answers afterwards, outside the measured time.
        top_k: Most likely tokens kept, 0 keeps all.
        top_p: Nucleus mass kept.
    """

    def __init__(self, server: Server, weights: Path, score: Scorer, *, top_k: int, top_p: float) -> None:
        self._server = server
        self._weights = weights
        self._score = score
        self._filters = {"top_k": top_k, "top_p": top_p, "min_p": 0.0}

    def reason_against(self, workload: SpeedWorkload) -> str | None:
        """It runs every workload."""
        return None

    def run(self, prompts: list[list[int]], workload: SpeedWorkload, seed: int) -> SpeedSample:
        """Decode one batch, every row as a request of its own, all at once.

        Raises:
            ConfigError: The file cannot be loaded, or a request was refused.
        """
        self._server.make_room(len(prompts), max(len(prompt) for prompt in prompts) + workload.new_tokens)
        requests = [self._request(prompt, workload, seed + 1000 * row) for row, prompt in enumerate(prompts)]
        replies, seconds = self._server.complete(requests)
        answers = [reply["__verbose"]["tokens"] for reply in replies]
        prefill_s = max(reply["timings"]["prompt_ms"] for reply in replies) / 1000
        num_tokens = sum(len(answer) for answer in answers)
        return SpeedSample(
            prefill_s=prefill_s,
            decode_s=seconds - prefill_s,
            num_decoded=num_tokens,
            num_tokens=num_tokens,
            log_prob_sum=self._score(prompts, answers),
            target_calls=num_tokens,
            num_iterations=workload.new_tokens,
            floor_bytes=workload.new_tokens * self._weights.stat().st_size,
        )

    def _request(self, prompt: list[int], workload: SpeedWorkload, seed: int) -> dict[str, Any]:
        return self._filters | {
            "prompt": prompt,
            "max_tokens": workload.new_tokens,
            "temperature": workload.temperature,
            "seed": seed,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "verbose": True,
        }
