"""Tiny models in fused layers and module by module, and what both say of trees, roots and levels."""

import os
from importlib.util import find_spec
from typing import Any

import torch
from tests.tiny_models import LLAMA_3_ROTATION, VOCAB_SIZE, enliven, tiny_model
from torch import Tensor

from mtad.models.transformers_runner import TransformersRunner
from mtad.models.triton_decoder import can_fuse_layers
from mtad.structures import TokenTree, ancestor_bitmask

HAS_CUDA = torch.cuda.is_available()
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
DEVICE = "cuda" if HAS_CUDA and not IS_INTERPRETED else "cpu"
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17], [18]]
PARENTS = [[-1, -1, 0, 0, 1, 2, 3], [-1, -1, 1, 0, 0, 4, 3], [-1, 0, 1, 2, 3, 4, 5]]
DEPTHS = [1, 1, 2, 2, 2, 3, 3]

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 16}),
    "one key head": ("llama", {"head_dim": 64, "num_key_value_heads": 1}),
    "tied, odd sizes": ("llama", {"head_dim": 24, "tie_word_embeddings": True, "hidden_size": 72}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True, "intermediate_size": 77}),
    "llama 3": ("llama", {"head_dim": 16, "rope_parameters": LLAMA_3_ROTATION}),
    "mistral": ("mistral", {"head_dim": 16, "sliding_window": None}),
    "qwen2": ("qwen2", {"hidden_size": 64}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


def lively_model(name: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny model in which norms of ones and biases of zeros hide no swap, on the device under test."""
    return enliven(tiny_model(name, dtype=dtype, **changes)).to(DEVICE)


def make_runner(model: Any, **options: Any) -> TransformersRunner:
    runner = TransformersRunner(model, **options)
    runner.attach()
    return runner


def both(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> list[TransformersRunner]:
    """The same model twice: in fused layers, and module by module."""
    fused, modules = (lively_model(name, dtype, **changes) for _ in range(2))
    assert can_fuse_layers(fused)
    return [make_runner(fused), make_runner(modules, fuses=False)]


def prefill(runner: TransformersRunner, prompts: list[list[int]], capacity: int = 60) -> Tensor:
    longest = max(map(len, prompts))
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=DEVICE)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=DEVICE)
    runner.allocate(len(prompts), capacity)
    runner.prefill(padded, lengths - 1)
    return padded.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)


def make_tree(rows: int) -> TokenTree:
    generator = torch.Generator().manual_seed(1)
    parents = torch.tensor(PARENTS[:rows])
    tokens = torch.randint(3, VOCAB_SIZE, parents.shape, generator=generator)
    return TokenTree(
        tokens=tokens.to(DEVICE),
        parents=parents.to(DEVICE),
        depths=torch.tensor(DEPTHS, device=DEVICE),
        joint_draft_log_probs=torch.zeros(parents.shape, device=DEVICE),
        ancestors=ancestor_bitmask(parents).to(DEVICE),
        winner=torch.full((rows,), 6, device=DEVICE),
        valid=torch.ones_like(tokens, dtype=torch.bool, device=DEVICE),
        carried=torch.zeros_like(tokens, dtype=torch.bool, device=DEVICE),
    )


def device_tensor(values: Any) -> Tensor:
    return torch.tensor(values, device=DEVICE)


def scores(runner: TransformersRunner) -> list[Tensor]:
    """Logits of a tree, of a root behind the kept path, and of a level, over rows of different lengths."""
    pending = prefill(runner, PROMPTS)
    tree = make_tree(len(PROMPTS))
    found = [runner.score_tree(pending, tree)]
    paths = device_tensor([[0, 2, 5], [1, 2, -1], [0, 1, 2]])
    runner.keep_path(paths, device_tensor([3, 2, 0]), device_tensor([True, True, False]))
    found.append(runner.score_root(device_tensor([7, 8, 9]), device_tensor([9, 3, 4])))
    level = device_tensor([[5, 6], [7, 8], [9, 10]])
    found.append(runner.score_level(level, device_tensor([[1, 2]] * 3), 0, 1))
    return found


def largest_difference(got: list[Tensor], expected: list[Tensor]) -> float:
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
    return max(float((one - other).abs().max()) for one, other in zip(got, expected, strict=True))
