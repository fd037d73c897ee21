"""Times whole calls of known models in a CUDA graph against the bytes of their weights: by modules, and fused.

The weights are random. Needs a CUDA device. Run: python benchmarks/cuda_calls.py [SHAPE ...]
"""

import json
import sys
from typing import Any

import torch
from cuda_timing import device_bandwidth, time_s
from transformers import LlamaConfig, LlamaForCausalLM

from mtad.models.forward import ForwardBatch
from mtad.models.kernels import product_calls
from mtad.models.traffic import call_traffic
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.twins import SHAPES

MODELS = ("llama-3.2-1b", "llama-3.1-8b")
TOKENS = (1, 2, 5, 10, 17)
LENGTH = 512
WAYS = {"modules": 0, "fused": 0, "fused, our products": 32}
"""Ways, and the most tokens that our own products serve in them."""


def main() -> None:
    """Print one line per model and way, then all of them as JSON."""
    bandwidth = device_bandwidth()
    print(f"{torch.cuda.get_device_name()}, {bandwidth / 1e12:.2f} TB/s; ms (times the floor) by tokens")
    print(f"{'call':36}" + "".join(f"{tokens:>16}" for tokens in TOKENS))
    records = []
    for name in sys.argv[1:] or MODELS:
        model = random_model(name)
        floor = call_traffic(model).weight_bytes / bandwidth
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


if __name__ == "__main__":
    main()
