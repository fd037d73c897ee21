"""A Llama-like model on CUDA in few kernels a layer: four matrix products, attention, and what lies between them."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mtad.models.cache import SlotCache
from mtad.models.forward import ForwardBatch
from mtad.models.fused_decoder import FIXED_ROTATIONS, MODEL_TYPES, has_hooks
from mtad.models.kernels.launch import KERNEL_DTYPES, MAX_HEAD_DIM, tree_attention_kernel
from mtad.models.kernels.layer_calls import (
    Beginning,
    HeadNorms,
    Norm,
    Rotation,
    add_norm,
    begin,
    gate,
    move,
    rotate,
)
from mtad.models.kernels.product_calls import multiply, multiply_gated
from mtad.models.packed_rows import PackedRows, can_pack_rows, pack_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    attention_inputs: PackedRows
    attention_output: PackedRows
    neuron_inputs: PackedRows
    neuron_output: PackedRows
    inner_norm: Norm
    next_norm: Norm
    head_norms: HeadNorms | None


class TritonDecoder:
    """The model's whole forward call by kernels of ours and products of torch's; can be captured in a CUDA graph.

    Weights that are multiplied together are moved into one matrix, of which the model's parameters become views.

    Args:
        model: A model that `can_fuse_layers` has found fit.
        vocab_size: Leading logits that are wanted.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        inner = model.model
        self._vocab_size = vocab_size
        self._embedding = inner.embed_tokens.weight.detach()
        self._head = model.lm_head
        self._rotation = Rotation(
            frequencies=inner.rotary_emb.inv_freq.float().contiguous(),
            scaling=float(inner.rotary_emb.attention_scaling),
        )
        attention = inner.layers[0].self_attn
        self._head_dim, self._scaling = int(attention.head_dim), float(attention.scaling)
        self._key_heads = int(model.config.num_key_value_heads)
        self._first_norm = _norm(inner.layers[0].input_layernorm)
        # The larger ones first: what is freed then has the size of what comes next.
        for layer in inner.layers:
            pack_rows(_neuron_inputs(layer))
        followers = [*(layer.input_layernorm for layer in inner.layers[1:]), inner.norm]
        self._layers = [_layer(layer, follower) for layer, follower in zip(inner.layers, followers, strict=True)]

    def forward(self, batch: ForwardBatch, positions: Tensor, cache: SlotCache) -> Tensor:
        """Logits `[batch, num_logits, vocab_size]`; keys and values of the tokens are written to the cache.

        Args:
            batch: What to compute.
            positions: Of each token, no larger than the model knows, `[batch, queries]` int64.
            cache: The model's cache.
        """
        # Contiguous once for all layers.
        batch = replace(
            batch,
            tokens=batch.tokens.contiguous(),
            slots=batch.slots.contiguous(),
            prefix_lengths=batch.prefix_lengths.contiguous(),
            ancestors=batch.ancestors.contiguous(),
            tree_starts=batch.tree_starts.contiguous(),
        )
        stack = self._in_use(cache)
        with torch.cuda.device_of(self._embedding):  # type: ignore[no-untyped-call]
            beginning = begin(batch.tokens, positions.contiguous(), self._embedding, self._first_norm, self._rotation)
            normed = beginning.normed
            for index, layer in enumerate(self._layers):
                is_last = index == len(self._layers) - 1
                num_kept = batch.num_logits if is_last else batch.tokens.shape[1]
                normed = self._run(layer, normed, beginning, batch, stack[index], num_kept)
        logits: Tensor = self._head(normed)
        return logits[..., : self._vocab_size]

    def move(self, cache: SlotCache, sources: Tensor, targets: Tensor) -> None:
        """See `SlotCache.move`: every layer at once."""
        with torch.cuda.device_of(self._embedding):  # type: ignore[no-untyped-call]
            move(self._in_use(cache), sources.contiguous(), targets.contiguous())

    def _in_use(self, cache: SlotCache) -> Tensor:
        """The rows in use of all layers, `[layers, 2, rows, key_heads, slots, head_dim]`."""
        stack = cache.stack_layers(self._key_heads, self._head_dim, self._embedding)
        return stack[:, :, cache.first_row : cache.first_row + cache.num_rows]

    def _run(
        self, layer: _Layer, normed: Tensor, beginning: Beginning, batch: ForwardBatch, cache: Tensor, num_kept: int
    ) -> Tensor:
        """One layer; grows the residual stream and returns what the next one's products take."""
        residual, (keys, values) = beginning.residual, cache
        joint = _multiply(normed, layer.attention_inputs)
        query = rotate(joint, beginning, batch.slots, keys, values, layer.head_norms)
        seen = tree_attention_kernel(query.transpose(1, 2), keys, values, batch, scaling=self._scaling)
        update = _multiply(seen.flatten(2), layer.attention_output)
        normed = add_norm(residual, update, layer.inner_norm, residual.shape[1])
        neurons = multiply_gated(normed, layer.neuron_inputs.weight, layer.neuron_inputs.bias)
        if neurons is None:
            neurons = gate(_multiply(normed, layer.neuron_inputs), normed.dtype)
        return add_norm(residual, _multiply(neurons, layer.neuron_output), layer.next_norm, num_kept)


def _multiply(inputs: Tensor, layers: PackedRows) -> Tensor:
    return multiply(inputs, layers.weight, layers.bias)


def can_fuse_layers(model: Any) -> bool:
    """Whether `TritonDecoder` computes just what a model's own modules do, and its kernels can run where it lies."""
    config = model.config
    if config.model_type not in MODEL_TYPES or config.hidden_act != "silu" or model.dtype not in KERNEL_DTYPES:
        return False
    return _is_in_reach(model) and not has_hooks(model) and _has_fixed_rotation(model.model) and _is_plain(model.model)


def _is_in_reach(model: nn.Module) -> bool:
    """Whether all weights lie on one device that Triton serves; its interpreter serves the CPU."""
    kind = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
    devices = {weight.device for weight in model.parameters()}
    return find_spec("triton") is not None and len(devices) == 1 and {device.type for device in devices} == {kind}


def _has_fixed_rotation(inner: Any) -> bool:
    head_dim = inner.layers[0].self_attn.head_dim
    is_fixed = getattr(inner.rotary_emb, "rope_type", None) in FIXED_ROTATIONS
    return is_fixed and 2 * len(inner.rotary_emb.inv_freq) == head_dim <= MAX_HEAD_DIM


def _is_plain(inner: Any) -> bool:
    """Whether all layers are plain, with weights of one dtype."""
    embedding = inner.embed_tokens
    plain = type(embedding) is nn.Embedding and embedding.weight.is_contiguous()
    weights = [weight for layer in inner.layers for weight in layer.parameters()]
    one_dtype = {weight.dtype for weight in (*weights, inner.norm.weight)} == {embedding.weight.dtype}
    return plain and one_dtype and all(_layer_fits(layer) for layer in inner.layers)


def _layer_fits(layer: Any) -> bool:
    groups = (_attention_inputs(layer), _neuron_inputs(layer), [layer.self_attn.o_proj], [layer.mlp.down_proj])
    return all(can_pack_rows(group) for group in groups)


def _attention_inputs(layer: Any) -> list[nn.Linear]:
    attention = layer.self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def _neuron_inputs(layer: Any) -> list[nn.Linear]:
    return [layer.mlp.gate_proj, layer.mlp.up_proj]


def _layer(layer: Any, follower: Any) -> _Layer:
    attention = layer.self_attn
    return _Layer(
        attention_inputs=pack_rows(_attention_inputs(layer)),
        attention_output=pack_rows([attention.o_proj]),
        neuron_inputs=pack_rows(_neuron_inputs(layer)),
        neuron_output=pack_rows([layer.mlp.down_proj]),
        inner_norm=_norm(layer.post_attention_layernorm),
        next_norm=_norm(follower),
        head_norms=_head_norms(attention),
    )


def _norm(norm: Any) -> Norm:
    return Norm(weight=norm.weight.detach(), epsilon=float(norm.variance_epsilon))


def _head_norms(attention: Any) -> HeadNorms | None:
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    if None in norms:
        return None
    query, key = (_norm(norm) for norm in norms)
    return HeadNorms(query=query.weight, key=key.weight, epsilon=query.epsilon)
