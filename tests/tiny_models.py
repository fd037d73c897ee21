"""Tiny models with random weights, in float64 so that logits can be compared to the last digits."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB_SIZE = 61
EOS = 2

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    # Wide enough that logits differ clearly from token to token.
    "initializer_range": 0.4,
}
_GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
_HEADED = _GROUPED | {"head_dim": 8}

LLAMA_3_ROTATION = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
)


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a two-layer model of one architecture, grouped-query where it can be."""
    grouped = _COMMON | _GROUPED | changes
    headed = _COMMON | _HEADED | changes
    if name == "gpt2":
        positions = changes.pop("max_position_embeddings", 128)
        renamed = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": positions}
        kept = {key: _COMMON[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "initializer_range")}
        return GPT2Config(**(kept | renamed | changes))
    if name == "opt":
        return OPTConfig(**(_COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.4} | changes))
    if name == "gpt_neox":
        return GPTNeoXConfig(**(_COMMON | {"intermediate_size": 48} | changes))
    if name == "gemma2":
        return Gemma2Config(**(headed | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0} | changes))
    classes: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "phi3": Phi3Config}
    if name in classes:
        return classes[name](**grouped)  # type: ignore[no-any-return]
    classes = {"qwen3": Qwen3Config, "mistral": MistralConfig, "gemma": GemmaConfig}
    return classes[name](**headed)  # type: ignore[no-any-return]


def tiny_model(name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model of one architecture, with its stock attention."""
    config = tiny_config(name, **changes)
    stock = "eager" if name == "gemma2" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=stock
        )
    return model.eval()


@torch.no_grad()
def enliven(model: Any) -> Any:
    """The model with other vectors: norms of ones and biases of zeros would hide a swap."""
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model
