"""A Llama-like model with 8-bit weights as one call of the compiled kernels."""

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mtad.models.cache import SlotCache
from mtad.models.forward import ForwardBatch
from mtad.models.int8_linear import Int8Linear, KernelLinear

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose layers are those of Llama, but for biases and norms of heads."""
FIXED_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings whose frequencies do not depend on the length."""
_DTYPES = (torch.float32, torch.bfloat16)
_LINEARS = (
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("output", "self_attn.o_proj"),
    ("gate", "mlp.gate_proj"),
    ("up", "mlp.up_proj"),
    ("down", "mlp.down_proj"),
)
_NORMS = (
    ("input_norm", "input_layernorm"),
    ("inner_norm", "post_attention_layernorm"),
    ("query_norm", "self_attn.q_norm"),
    ("key_norm", "self_attn.k_norm"),
)


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, KernelLinear) for name, _ in _LINEARS),
        *((name, ctypes.c_void_p) for name, _ in _NORMS),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hidden", "heads", "key_heads", "head_dim", "num_layers")),
        *((name, ctypes.c_int64) for name in ("embedding_is_bfloat16", "cache_is_bfloat16")),
        ("embedding", ctypes.c_void_p),
        ("layers", ctypes.c_void_p),
        ("final_norm", ctypes.c_void_p),
        ("head", KernelLinear),
        ("frequencies", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("epsilon", "scaling", "rotary_scaling")),
    )


_SIZES = ("first_row", "rows", "queries", "cache_slots", "num_logits", "vocabulary", "num_threads")
_TENSORS = ("tokens", "positions", "slots", "prefix_lengths", "ancestors", "tree_starts")


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _TENSORS),
        ("logits", ctypes.c_void_p),
    )


class _Move(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("first_row", "rows", "cache_slots", "count")),
        *((name, ctypes.c_void_p) for name in ("sources", "targets")),
    )


class FusedDecoder:
    """The model's whole forward call as one operator; its weights are those of the model's `Int8Linear` layers.

    Args:
        model: A model that `can_fuse` has found fit.
        vocab_size: Leading logits to compute.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        self._model, self._vocab_size = model, vocab_size
        self._kept: list[Tensor] = []
        self._kernels = model.lm_head.kernels
        layers = [self._layer(layer) for layer in model.model.layers]
        self._layers = (_Layer * len(layers))(*layers)
        self._decoder = self._describe()
        self._cache_places: list[Tensor] = []

    def forward(self, batch: ForwardBatch, positions: Tensor, cache: SlotCache) -> Tensor:
        """Logits `[batch, num_logits, vocab_size]` float32; keys and values of the tokens are written to the cache.

        Args:
            batch: What to compute.
            positions: Of each token, no larger than the model knows, `[batch, queries]` int64.
            cache: The model's cache, aimed at the batch.
        """
        self._visit(cache)
        rows, queries = batch.tokens.shape
        logits = torch.empty(rows, batch.num_logits, self._vocab_size)
        tensors = [
            tensor.contiguous()
            for tensor in (
                batch.tokens,
                positions,
                batch.slots,
                batch.prefix_lengths,
                batch.ancestors,
                batch.tree_starts,
            )
        ]
        threads = torch.get_num_threads()
        sizes = (cache.first_row, rows, queries, cache.num_slots, batch.num_logits, self._vocab_size, threads)
        call = _Call(*sizes, *(tensor.data_ptr() for tensor in tensors), logits.data_ptr())
        self._kernels.mtad_decode(ctypes.byref(self._decoder), ctypes.byref(call))
        return logits

    def move(self, cache: SlotCache, sources: Tensor, targets: Tensor) -> None:
        """See `SlotCache.move`: every layer at once."""
        self._visit(cache)
        sources, targets = sources.contiguous(), targets.contiguous()
        rows, count = sources.shape
        places = (sources.data_ptr(), targets.data_ptr())
        move = _Move(cache.first_row, rows, cache.num_slots, count, *places)
        self._kernels.mtad_move(ctypes.byref(self._decoder), ctypes.byref(move))

    def _visit(self, cache: SlotCache) -> None:
        """Tell the kernels where the cache is, where it has moved since the last call."""
        head_dim, key_heads = self._decoder.head_dim, self._decoder.key_heads
        if not cache.slot_layers[0].is_initialized:
            states = torch.empty(1, key_heads, 1, head_dim, dtype=self._model.dtype)
            for layer in cache.slot_layers:
                layer.lazy_initialization(states, states)
        places = [cache.slot_layers[0].contents[0]]
        if self._cache_places and self._cache_places[0] is places[0]:
            return
        self._cache_places = places
        for view, layer in zip(self._layers, cache.slot_layers, strict=True):
            keys, values = layer.contents
            view.keys, view.values = keys.data_ptr(), values.data_ptr()

    def _describe(self) -> _Decoder:
        config, inner = self._model.config, self._model.model
        attention = inner.layers[0].self_attn
        embedding = inner.embed_tokens.weight
        return _Decoder(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            num_layers=len(inner.layers),
            embedding_is_bfloat16=embedding.dtype == torch.bfloat16,
            cache_is_bfloat16=embedding.dtype == torch.bfloat16,
            embedding=self._keep(embedding, embedding.dtype),
            layers=ctypes.addressof(self._layers),
            final_norm=self._keep(inner.norm.weight),
            head=self._model.lm_head.kernel_view,
            frequencies=self._keep(inner.rotary_emb.inv_freq),
            epsilon=config.rms_norm_eps,
            scaling=attention.scaling,
            rotary_scaling=inner.rotary_emb.attention_scaling,
        )

    def _layer(self, layer: nn.Module) -> _Layer:
        linears = {name: layer.get_submodule(path).kernel_view for name, path in _LINEARS}
        norms = {name: self._keep(norm.weight) for name, norm in _norms(layer)}
        return _Layer(**linears, **norms)

    def _keep(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        """The place of a tensor that lives as long as this."""
        self._kept.append(tensor.detach().to(dtype).contiguous())
        return self._kept[-1].data_ptr()


def can_fuse(model: Any) -> bool:
    """Whether the kernels compute just what a model's own modules do."""
    config = model.config
    if config.model_type not in MODEL_TYPES or config.hidden_act != "silu" or model.dtype not in _DTYPES:
        return False
    head = getattr(model, "lm_head", None)
    if not isinstance(head, Int8Linear) or head.kernels is None:
        return False
    inner = model.model
    head_dim = inner.layers[0].self_attn.head_dim
    has_fixed_rotation = getattr(inner.rotary_emb, "rope_type", None) in FIXED_ROTATIONS
    rotates_all = 2 * len(inner.rotary_emb.inv_freq) == head_dim
    layers_fit = all(
        isinstance(layer.get_submodule(path), Int8Linear) for layer in inner.layers for _, path in _LINEARS
    )
    return has_fixed_rotation and rotates_all and head_dim % 16 == 0 and layers_fit and not has_hooks(model)


def has_hooks(model: nn.Module) -> bool:
    """Whether something takes part between a model's modules, which one call of kernels would pass over."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook") for module in model.modules()
    )


def _norms(layer: nn.Module) -> Iterable[tuple[str, Any]]:
    for name, path in _NORMS:
        owner, _, last = path.rpartition(".")
        norm = getattr(layer.get_submodule(owner), last, None)
        if norm is not None:
            yield name, norm
