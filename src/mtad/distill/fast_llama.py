"""Whole texts through a Llama with a third of the launches and half of the memory traffic of its modules."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtad.distill.fast_layers import add_norm, gate, rotate
from mtad.models.packed_rows import pack_rows

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without those that plan anew for every shape."""
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")


def find_fast_llama(model: Any) -> "FastLlama | None":
    """A faster way to read texts with a model on CUDA; None where its modules have to do it."""
    if model.get_input_embeddings().weight.device.type != "cuda" or find_spec("triton") is None:
        return None
    return FastLlama(model) if is_plain_llama(model) else None


def is_plain_llama(model: Any) -> bool:
    """Whether `FastLlama` computes just what the modules do."""
    config = model.config
    if config.model_type != "llama" or config.hidden_act != "silu" or config.attention_bias or config.mlp_bias:
        return False
    weights = list(model.base_model.parameters())
    is_narrow = all(weight.dtype in (torch.float32, torch.bfloat16, torch.float16) for weight in weights)
    is_together = len({weight.device for weight in weights}) == 1
    linears = [module for layer in model.base_model.layers for module in _linears(layer)]
    rotary = getattr(model.base_model, "rotary_emb", None)
    return (
        is_narrow
        and is_together
        and all(type(module) is nn.Linear and module.bias is None for module in linears)
        and getattr(rotary, "rope_type", None) in _FIXED_ROTATIONS
    )


class FastLlama:
    """Reads whole texts; weights are the model's own, in at most the dtype of the products.

    Args:
        model: One that `is_plain_llama` accepts.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        heads, key_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        self.heads, self.head_dim = (heads, key_heads, key_heads), model.base_model.layers[0].self_attn.head_dim
        self._is_frozen = not any(weight.requires_grad for weight in model.base_model.parameters())
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def hidden(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """The hidden states that the output head reads, `[rows, tokens, hidden]` in `dtype`; gradients reach the model.

        Args:
            tokens: Right-padded texts, `[rows, tokens]` int64.
            dtype: Of the products.
        """
        inner = self.model.base_model
        stream = inner.embed_tokens(tokens).flatten(0, 1)
        angles = self._angles(tokens)
        branch = None
        for number, layer in enumerate(inner.layers):
            joined, output, wide, down = self._weights(number, layer, dtype)
            stream, normed = self._norm(layer.input_layernorm, stream, branch, dtype)
            states = rotate(F.linear(normed, joined), angles, (sum(self.heads), sum(self.heads[:2])), self.head_dim)
            branch = F.linear(self._attend(states, tokens.shape, layer.self_attn.scaling), output)
            stream, normed = self._norm(layer.post_attention_layernorm, stream, branch, dtype)
            branch = F.linear(gate(F.linear(normed, wide)), down)
        return self._norm(inner.norm, stream, branch, dtype)[1].view(*tokens.shape, -1)

    def _norm(self, module: Any, stream: Tensor, branch: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
        return add_norm(stream, branch, module.weight, module.variance_epsilon, dtype)

    def _attend(self, states: Tensor, shape: torch.Size, scaling: float) -> Tensor:
        parts = torch.split(states.view(*shape, sum(self.heads), self.head_dim), list(self.heads), 2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        with sdpa_kernel(_KERNELS):
            found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return found.transpose(1, 2).flatten(2).flatten(0, 1)

    def _angles(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        like = torch.empty(0, dtype=torch.float32, device=tokens.device)
        cosine, sine = self.model.base_model.rotary_emb(like, positions)
        return cosine[0].contiguous(), sine[0].contiguous()

    def _weights(self, number: int, layer: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Query, key and value in one, the output, gate and up in one, and down; kept where they do not change."""
        if number in self._kept:
            return self._kept[number]
        attention, mlp = layer.self_attn, layer.mlp
        found = (
            self._joined([attention.q_proj, attention.k_proj, attention.v_proj]).to(dtype),
            attention.o_proj.weight.to(dtype),
            self._joined([mlp.gate_proj, mlp.up_proj]).to(dtype),
            mlp.down_proj.weight.to(dtype),
        )
        if self._is_frozen:
            self._kept[number] = found
        return found

    def _joined(self, linears: list[Any]) -> Tensor:
        """Their weights below one another; those that do not change are moved there, and no copy is made."""
        return pack_rows(linears).weight if self._is_frozen else torch.cat([linear.weight for linear in linears])


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    ]
