"""Times whole calls of known models in a CUDA graph against the bytes of their weights: by modules, and fused.

The weights are random. Needs a CUDA device. Run: python benchmarks/cuda_calls.py [SHAPE ...]
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mtad.bench.bandwidth import measure_bandwidth
from mtad.models.forward import ForwardBatch
from mtad.models.kernels import product_calls
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.twins import SHAPES

MODELS = ("llama-3.2-1b", "llama-3.1-8b")
TOKENS = (1, 2, 5, 10, 17)
LENGTH = 512
WAYS = {"modules": 0, "fused": 0, "fused, our products": 32}
"""Ways, and the most tokens that our own products serve in them."""
REPEATS = 10


def main() -> None:
    """Print one line per model and way, then all of them as JSON."""
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; run this where there is a GPU")
    bandwidth = measure_bandwidth(torch.device("cuda"))
    print(f"{torch.cuda.get_device_name()}, {bandwidth / 1e12:.2f} TB/s; ms (times the floor) by tokens")
    print(f"{'call':36}" + "".join(f"{tokens:>16}" for tokens in TOKENS))
    records = []
    for name in sys.argv[1:] or MODELS:
        model = random_model(name)
        floor = weight_bytes(model) / bandwidth
        for way, most_tokens in WAYS.items():
            product_calls.MAX_TOKENS = most_tokens
            runner = TransformersRunner(model, fuses=way != "modules")
            runner.attach()
            times = [measure(runner, tokens) for tokens in TOKENS]
            cells = "".join(f"{seconds * 1e3:8.2f} ({seconds / floor:4.2f}x)" for seconds in times)
            print(f"{name} {way}".ljust(36) + cells, flush=True)
            records.append({"model": name, "way": way, "floor_s": floor, "seconds": times})
        del model, runner
        torch.cuda.empty_cache()
    print(json.dumps({"device": torch.cuda.get_device_name(), "bandwidth": bandwidth, "calls": records}))


def random_model(name: str) -> Any:
    """A Llama model of known sizes with random weights, bfloat16."""
    shape = SHAPES[name]
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=4096,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cuda")
    model.tie_weights()
    with torch.device("cuda"):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model.eval()


def weight_bytes(model: Any) -> int:
    """Bytes of all weights that one call reads."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    return total if model.config.tie_word_embeddings else total - model.model.embed_tokens.weight.nbytes


def measure(runner: TransformersRunner, tokens: int) -> float:
    """Seconds of a call over so many tokens of a tree behind a text."""
    runner.allocate(1, LENGTH + 128)
    order = torch.arange(tokens, device="cuda").unsqueeze(0)
    batch = ForwardBatch(
        tokens=order,
        positions=LENGTH + order,
        slots=LENGTH + order,
        prefix_lengths=torch.full_like(order, LENGTH + 1),
        ancestors=(torch.ones_like(order) << order) - 1,
        tree_starts=torch.full_like(order[:, 0], LENGTH + 1),
        num_slots=runner.num_slots - 1,
        num_logits=tokens,
    )
    return time_s(lambda: runner.forward(batch))


def time_s(call: Callable[[], object]) -> float:
    """Median time of one replay of the call in a CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    times = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(torch.tensor(times).median())


if __name__ == "__main__":
    main()
