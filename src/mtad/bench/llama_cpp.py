"""llama.cpp on the same prompts, through the wheel `xllamacpp`."""

import importlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mtad.bench.peers import LLAMA_CPP, SpeedSample
from mtad.bench.workloads import SpeedWorkload
from mtad.errors import ConfigError

_SPARE_SLOTS = 16

Scorer = Callable[[list[list[int]], list[list[int]]], float]
"""Prompts and answers to the sum of the answers' log-probabilities under the target."""


def load_llama_cpp() -> Any:
    """The module `xllamacpp`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise ConfigError(
            f"{LLAMA_CPP} needs the package xllamacpp, which cannot be imported ({error}); "
            "install it with pip install 'mtad[bench]', or leave the contender out"
        ) from error


class LlamaCppPeer:
    """Single-token sampling of llama.cpp's own server, called in this process.

    Args:
        module: What `load_llama_cpp` gives.
        weights: A GGUF file of the target.
        score: Called with the answers afterwards, outside the measured time.
        top_k: Most likely tokens kept, 0 keeps all.
        top_p: Nucleus mass kept.
    """

    def __init__(self, module: Any, weights: Path, score: Scorer, *, top_k: int, top_p: float) -> None:
        self._module = module
        self._weights = weights
        self._score = score
        self._filters = {"top_k": top_k, "top_p": top_p, "min_p": 0.0}
        self._server: Any = None
        self._room = (0, 0)

    def reason_against(self, workload: SpeedWorkload) -> str | None:
        """It runs every workload."""
        return None

    def run(self, prompts: list[list[int]], workload: SpeedWorkload, seed: int) -> SpeedSample:
        """Decode one batch, every row as a request of its own, all at once.

        Raises:
            ConfigError: The file cannot be loaded, or a request was refused.
        """
        self._make_room(len(prompts), max(len(prompt) for prompt in prompts) + workload.new_tokens)
        requests = [self._request(prompt, workload, seed + 1000 * row) for row, prompt in enumerate(prompts)]
        started = perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            replies = list(pool.map(self._complete, requests))
        seconds = perf_counter() - started
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

    def _make_room(self, num_rows: int, num_tokens: int) -> None:
        """A server for so many rows of so many tokens; the one at hand where it is large enough."""
        rows, tokens = self._room
        if self._server is not None and rows == num_rows and tokens >= num_tokens:
            return
        self._server = None
        self._room = (num_rows, num_tokens + _SPARE_SLOTS)
        settings = self._module.CommonParams()
        settings.model.path = str(self._weights)
        settings.n_parallel = num_rows
        settings.n_ctx = num_rows * self._room[1]
        settings.cpuparams.n_threads = torch.get_num_threads()
        settings.cpuparams_batch.n_threads = torch.get_num_threads()
        settings.verbosity = -1
        try:
            self._server = self._module.Server(settings)
        except RuntimeError as error:
            raise ConfigError(
                f"llama.cpp cannot load {self._weights} ({error}); name a GGUF file of the target with --gguf"
            ) from error

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

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        reply = self._server.handle_completions(request)
        document: dict[str, Any] = json.loads(reply) if isinstance(reply, str) else reply
        if "error" in document:
            raise ConfigError(f"llama.cpp refused a request: {document['error'].get('message', document['error'])}")
        return document
