"""Cost twins: a small model enlarged to the size of a known one without changing its function."""

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtad.errors import ConfigError, UnsupportedModelError

_BLOCK = 1 << 20
_SCALE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinShape:
    """The sizes of a Llama-like model.

    Attributes:
        hidden_size: Channels of the residual stream.
        num_hidden_layers: Layers.
        num_attention_heads: Query heads of a layer.
        num_key_value_heads: Key heads of a layer.
        head_dim: Channels of a head.
        intermediate_size: Neurons of a layer.
        vocab_size: Rows of the head; a smaller one than the model's own leaves the model's.
        tie_word_embeddings: Whether the head is the embedding's weight.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool


def _shape(*sizes: int, ties: bool) -> TwinShape:
    hidden, layers, heads, key_heads, head_dim, neurons, vocabulary = sizes
    return TwinShape(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        intermediate_size=neurons,
        vocab_size=vocabulary,
        tie_word_embeddings=ties,
    )


SHAPES = {
    "llama-68m": _shape(768, 2, 12, 12, 64, 3072, 32000, ties=False),
    "smollm2-360m": _shape(960, 32, 15, 5, 64, 2560, 49152, ties=True),
    "tinyllama-1.1b": _shape(2048, 22, 32, 4, 64, 5632, 32000, ties=False),
    "llama-3.2-1b": _shape(2048, 16, 32, 8, 64, 8192, 128256, ties=True),
    "smollm2-1.7b": _shape(2048, 24, 32, 32, 64, 8192, 49152, ties=True),
    "llama-3.2-3b": _shape(3072, 28, 24, 8, 128, 8192, 128256, ties=True),
    "llama-2-7b": _shape(4096, 32, 32, 32, 128, 11008, 32000, ties=False),
    "llama-3.1-8b": _shape(4096, 32, 32, 8, 128, 14336, 128256, ties=False),
    "llama-2-13b": _shape(5120, 40, 40, 40, 128, 13824, 32000, ties=False),
    "llama-3.1-70b": _shape(8192, 80, 64, 8, 128, 28672, 128256, ties=False),
}
"""Sizes by name, small to large."""


def find_shape(name: str) -> TwinShape:
    """The sizes of a name.

    Raises:
        ConfigError: The name is not known.
    """
    if name not in SHAPES:
        raise ConfigError(f"unknown shape {name!r}; known shapes are {', '.join(SHAPES)}")
    return SHAPES[name]


@torch.no_grad()
def enlarge(model: Any, shape: TwinShape, name: str) -> Any:
    """A model of the given sizes with the same logits for the model's own tokens, up to rounding.

    The residual stream is padded with zeros, norms are rescaled for its width, and extra heads, neurons and layers are
    computed on random weights whose outputs are multiplied by zeros: memory traffic and arithmetic are those of the
    sizes. Extra rows of the head give logits that a runner cuts off by its vocabulary.

    Args:
        model: A `LlamaForCausalLM` without biases; it is left as it is.
        shape: No size smaller than the model's own, but for the vocabulary.
        name: What the shape is called in errors.

    Returns:
        A new model on the same device in the same dtype.

    Raises:
        UnsupportedModelError: Another architecture, or one with biases.
        ConfigError: The model does not fit into the shape.
    """
    config = model.config
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        raise UnsupportedModelError(
            f"a cost twin needs a Llama model without biases, got {config.model_type}; leave the shape out"
        )
    _check_fit(config, shape, name)
    layout = _Layout(config, shape)
    twin = _empty_twin(model, shape)
    _fill_embeddings(model, twin, layout)
    _fill_norm(model.model.norm, twin.model.norm, layout)
    for index, layer in enumerate(twin.model.layers):
        source = model.model.layers[index] if index < len(model.model.layers) else None
        _fill_layer(source, layer, layout)
    twin.generation_config = model.generation_config
    return twin.eval()


class _Layout:
    """Where the small model's channels, heads and neurons lie in the large one."""

    def __init__(self, config: Any, shape: TwinShape) -> None:
        self.hidden, self.large_hidden = int(config.hidden_size), shape.hidden_size
        self.neurons = int(config.intermediate_size)
        self.vocab_size = int(config.vocab_size)
        small_dim, large_dim = _head_dim(config), shape.head_dim
        self.query_scale = math.sqrt(large_dim / small_dim)
        channels = _channels(small_dim, large_dim)
        group = config.num_attention_heads // config.num_key_value_heads
        large_group = shape.num_attention_heads // shape.num_key_value_heads
        parts = -(-group // large_group)
        heads = [(head // group, head % group) for head in range(config.num_attention_heads)]
        places = [(key * parts + rank // large_group) * large_group + rank % large_group for key, rank in heads]
        self.queries = _rows(places, large_dim, channels)
        self.keys = _rows(list(range(config.num_key_value_heads * parts)), large_dim, channels)
        self.key_sources = _rows(
            [key for key in range(config.num_key_value_heads) for _ in range(parts)],
            small_dim,
            torch.arange(small_dim),
        )
        self.num_key_rows = config.num_key_value_heads * parts * large_dim


def _check_fit(config: Any, shape: TwinShape, name: str) -> None:
    for size in ("hidden_size", "num_hidden_layers", "intermediate_size"):
        if getattr(config, size) > getattr(shape, size):
            raise ConfigError(
                f"{name} has {size} {getattr(shape, size)}, the model {getattr(config, size)}; "
                f"choose a shape that is no smaller: {_fitting(config) or 'none of the known ones is'}"
            )
    if not _fits(config, shape):
        raise ConfigError(
            f"the model's heads do not fit into those of {name}; "
            f"choose another shape: {_fitting(config) or 'none of the known ones fits'}"
        )


def _fits(config: Any, shape: TwinShape) -> bool:
    is_larger = (
        config.hidden_size <= shape.hidden_size
        and config.num_hidden_layers <= shape.num_hidden_layers
        and config.intermediate_size <= shape.intermediate_size
    )
    group = config.num_attention_heads // config.num_key_value_heads
    large_group = shape.num_attention_heads // shape.num_key_value_heads
    has_heads = config.num_key_value_heads * -(-group // large_group) <= shape.num_key_value_heads
    return is_larger and has_heads and shape.head_dim % _head_dim(config) == 0


def _fitting(config: Any) -> str:
    return ", ".join(name for name, shape in SHAPES.items() if _fits(config, shape))


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _channels(small: int, large: int) -> Tensor:
    """Channels of a large head that turn at the frequencies of a small one's; rotary channels come in two halves."""
    half = torch.arange(small // 2) * (large // small)
    return torch.cat([half, half + large // 2])


def _rows(heads: list[int], head_dim: int, channels: Tensor) -> Tensor:
    return (torch.tensor(heads).unsqueeze(1) * head_dim + channels).flatten()


def _empty_twin(model: Any, shape: TwinShape) -> Any:
    """A model of the shape with random weights."""
    config = copy.deepcopy(model.config)
    sizes = asdict(shape)
    sizes["vocab_size"] = max(shape.vocab_size, config.vocab_size)
    sizes["tie_word_embeddings"] = shape.tie_word_embeddings and config.tie_word_embeddings
    sizes["rms_norm_eps"] = config.rms_norm_eps * config.hidden_size / shape.hidden_size
    for key, value in sizes.items():
        setattr(config, key, value)
    weight = model.get_input_embeddings().weight
    with torch.device("meta"):
        twin = type(model)(config)
    twin = twin.to(weight.dtype).to_empty(device=weight.device)
    twin.tie_weights()
    # Buffers outside the checkpoint are computed, not loaded.
    with weight.device:
        twin.model.rotary_emb = type(twin.model.rotary_emb)(config)
    generator = torch.Generator(weight.device).manual_seed(0)
    block = torch.randn(_BLOCK, generator=generator, device=weight.device).mul_(_SCALE).to(weight.dtype)
    for parameter in twin.parameters():
        flat = parameter.view(-1)
        for start in range(0, len(flat), _BLOCK):
            part = flat[start : start + _BLOCK]
            part.copy_(block[: len(part)])
    return twin


def _fill_embeddings(model: Any, twin: Any, layout: _Layout) -> None:
    inputs, outputs = twin.get_input_embeddings().weight, twin.get_output_embeddings().weight
    if outputs is not inputs:
        outputs[: layout.vocab_size, : layout.hidden] = model.get_output_embeddings().weight
    inputs[:, layout.hidden :] = 0
    inputs[: layout.vocab_size, : layout.hidden] = model.get_input_embeddings().weight


def _fill_norm(source: nn.Module | None, norm: Any, layout: _Layout) -> None:
    """The root mean square of padded channels is smaller by the root of the widths' ratio."""
    norm.weight.fill_(1.0)
    if source is not None:
        norm.weight[: layout.hidden] = source.get_parameter("weight") * math.sqrt(layout.hidden / layout.large_hidden)


def _fill_layer(source: Any | None, layer: Any, layout: _Layout) -> None:
    """One layer; without a source, its outputs alone are silenced."""
    attention, mlp, hidden = layer.self_attn, layer.mlp, layout.hidden
    attention.o_proj.weight.zero_()
    mlp.down_proj.weight.zero_()
    _fill_norm(None if source is None else source.input_layernorm, layer.input_layernorm, layout)
    _fill_norm(None if source is None else source.post_attention_layernorm, layer.post_attention_layernorm, layout)
    if source is None:
        return
    small = source.self_attn
    attention.q_proj.weight[layout.queries, :hidden] = small.q_proj.weight * layout.query_scale
    # Channels that the small model lacks must not add to the scores.
    attention.k_proj.weight[: layout.num_key_rows] = 0
    attention.k_proj.weight[layout.keys, :hidden] = small.k_proj.weight[layout.key_sources]
    attention.v_proj.weight[layout.keys, :hidden] = small.v_proj.weight[layout.key_sources]
    attention.o_proj.weight[:hidden, layout.queries] = small.o_proj.weight
    for name in ("gate_proj", "up_proj"):
        getattr(mlp, name).weight[: layout.neurons, :hidden] = getattr(source.mlp, name).weight
    mlp.down_proj.weight[:hidden, : layout.neurons] = source.mlp.down_proj.weight
