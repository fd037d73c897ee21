"""Times the matrix products of known models over a few tokens against the bytes of their weights.

Needs a CUDA device. Run: python benchmarks/cuda_products.py
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from cuda_timing import device_bandwidth, time_s
from torch import Tensor

from mtad.models.kernels import product_calls
from mtad.models.twins import SHAPES, TwinShape

MODELS = ("llama-3.1-8b", "llama-3.2-1b", "llama-2-13b", "llama-68m")
OURS = ("llama-3.1-8b", "llama-3.2-1b")
"""Models for which the kernels of `kernels/products.py` are measured too."""
MOST_OURS = 32
TOKENS = (1, 4, 5, 10, 17, 32, 64)
CALLS = 20
COLD_BYTES = 160_000_000
"""Weights that are read in turns exceed the second-level cache by far, so that every one comes from memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product of a layer, or the head: `[tokens, inputs]` times `[outputs, inputs]` transposed."""

    model: str
    name: str
    outputs: int
    inputs: int


def products(model: str, shape: TwinShape) -> list[Product]:
    """The products of one model, packed as the decoder packs them."""
    attention = shape.num_attention_heads * shape.head_dim
    sizes = {
        "qkv": (attention + 2 * shape.num_key_value_heads * shape.head_dim, shape.hidden_size),
        "output": (shape.hidden_size, attention),
        "gate_up": (2 * shape.intermediate_size, shape.hidden_size),
        "down": (shape.hidden_size, shape.intermediate_size),
        "head": (shape.vocab_size, shape.hidden_size),
    }
    return [Product(model=model, name=name, outputs=size[0], inputs=size[1]) for name, size in sizes.items()]


def main() -> None:
    """Print one line per product and way, then all of them as JSON."""
    bandwidth = device_bandwidth()
    print(f"{torch.cuda.get_device_name()}, {bandwidth / 1e12:.2f} TB/s; GB/s (share of that) by tokens")
    print(f"{'product':40}" + "".join(f"{tokens:>14}" for tokens in TOKENS))
    records = []
    for product in [product for model in MODELS for product in products(model, SHAPES[model])]:
        for way in ("torch", "ours") if product.model in OURS and product.name != "head" else ("torch",):
            times = measure(product, way)
            num_bytes = 2 * product.outputs * product.inputs
            cells = "".join(f"{num_bytes / s / 1e9:8.0f} ({num_bytes / s / bandwidth:3.0%})" for s in times)
            print(f"{product.model} {product.name:8} {num_bytes / 1e6:7.1f} MB {way}".ljust(40) + cells, flush=True)
            row = {"model": product.model, "name": product.name, "way": way, "bytes": num_bytes, "seconds": times}
            records.append(row)
    found = {"device": torch.cuda.get_device_name(), "bandwidth": bandwidth, "tokens": TOKENS, "products": records}
    print(json.dumps(found))


@torch.inference_mode()
def measure(product: Product, way: str) -> list[float]:
    """Seconds of one product for each number of tokens, weights not in the cache; ours opens gates as well."""
    num_bytes = 2 * product.outputs * product.inputs
    copies = max(2, -(-COLD_BYTES // num_bytes))
    weights = torch.empty(copies, product.outputs, product.inputs, device="cuda", dtype=torch.bfloat16).normal_()
    order = [weights[index % copies] for index in range(max(CALLS, copies))]
    times = []
    for tokens in TOKENS if way == "torch" else [tokens for tokens in TOKENS if tokens <= MOST_OURS]:
        product_calls.MAX_TOKENS = 0 if way == "torch" else MOST_OURS
        inputs = torch.randn(1, tokens, product.inputs, device="cuda", dtype=torch.bfloat16)
        is_gated = way == "ours" and product.name == "gate_up"
        call = product_calls.multiply_gated if is_gated else product_calls.multiply
        times.append(time_s(partial(multiply_all, call, inputs, order)) / len(order))
    return times


def multiply_all(call: Callable[[Tensor, Tensor, None], object], inputs: Tensor, weights: Sequence[Tensor]) -> None:
    """The same tokens times one weight after the other."""
    for weight in weights:
        call(inputs, weight, None)


if __name__ == "__main__":
    main()
