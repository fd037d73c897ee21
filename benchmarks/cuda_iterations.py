"""Times iterations of cost twins of a random pair in CUDA graphs against the bytes of their weights.

    python benchmarks/cuda_iterations.py --record benchmarks/records/cuda_iterations.json

What is kept of a draft depends on the models, the time of an iteration does not: a random pair serves. Needs a CUDA
device with 50 GB of memory.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cuda_timing import device_bandwidth
from transformers import LlamaConfig, LlamaForCausalLM

from mtad.config import GenerationOptions
from mtad.decoding import build_decoder
from mtad.models.traffic import call_traffic
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.twins import enlarge, find_shape
from mtad.results.files import write_json
from mtad.results.provenance import describe_run
from mtad.structures import RowSettings

PAIRS = (("llama-3.1-8b", "llama-3.2-1b"), ("llama-2-13b", "llama-68m"))
WARM_UPS, ITERATIONS = 4, 20
PROMPT_TOKENS, ROOM = 100, 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What is timed; `batch_size` rows."""

    method: str
    gamma: int = 4
    beam_width: int = 4
    batch_size: int = 1


WAYS = (
    Way(method="autoregressive"),
    Way(method="speculative", beam_width=1),
    Way(method="mmtad"),
    Way(method="mmtad", gamma=3, beam_width=3),
    Way(method="mmtad", batch_size=8),
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Times iterations of cost twins of a random pair.")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    options = parser.parse_args()
    bandwidth = device_bandwidth()
    rows: list[dict[str, Any]] = []
    for names in PAIRS:
        models = [enlarge(tiny_model(), find_shape(name), name) for name in names]
        floors = [call_traffic(model).weight_bytes / bandwidth for model in models]
        # Packed weights stay packed, so the modules come first.
        for fuses in (False, True):
            runners = [served(model, fuses=fuses) for model in models]
            for way in WAYS:
                drafted = 0 if way.method == "autoregressive" else way.gamma
                floor_ms, iteration_ms = 1e3 * (floors[0] + drafted * floors[1]), measure(runners, way)
                words = f"{way.method}, {way.gamma} x {way.beam_width}, batch {way.batch_size}"
                print(
                    f"{' / '.join(names)}, {words}: {iteration_ms:.2f} ms ({iteration_ms / floor_ms:.2f}x)", flush=True
                )
                found = {"is_fused": fuses, "iteration_ms": iteration_ms, "floor_ms": floor_ms}
                rows.append({"target": names[0], "draft": names[1]} | asdict(way) | found)
        del models, runners
        torch.cuda.empty_cache()
    if options.record is not None:
        document = {"kind": "cuda_iterations", "run": describe_run(), "bandwidth": bandwidth, "rows": rows}
        write_json(options.record, document)


def tiny_model() -> Any:
    """A random model with a real vocabulary, small enough for every shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16)


def served(model: Any, *, fuses: bool) -> TransformersRunner:
    """A model with tree attention."""
    runner = TransformersRunner(model, fuses=fuses)
    runner.attach()
    return runner


def measure(runners: list[TransformersRunner], way: Way) -> float:
    """Milliseconds of an iteration, replayed."""
    options = GenerationOptions(method=way.method, gamma=way.gamma, beam_width=way.beam_width, ignore_eos=True)
    decoder = build_decoder(options, runners[0], runners[1], frozenset(), temperature=1.0)
    settings = [RowSettings(seed=row, top_k=10, top_p=0.9, threshold=0.5) for row in range(way.batch_size)]
    decoder.prefill([[5] * PROMPT_TOKENS] * way.batch_size, settings, [ROOM] * way.batch_size)
    active = [True] * way.batch_size
    for _ in range(WARM_UPS):
        decoder.step(active)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(ITERATIONS):
        decoder.step(active)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / ITERATIONS * 1e3


if __name__ == "__main__":
    main()
