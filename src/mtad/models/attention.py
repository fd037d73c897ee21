"""Tree attention over a slot cache, registered with transformers' attention interface."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mtad.errors import UnsupportedModelError
from mtad.models.forward import ForwardBatch
from mtad.models.kernels.launch import kernel_serves, tree_attention_kernel

ATTENTION_NAME = "mtad_tree"
"""Name under which the function is registered with transformers."""

BATCH_ARGUMENT = "tree_batch"
"""Keyword that carries the `ForwardBatch` through the model to the attention function."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of tree nodes over committed tokens, their ancestors and themselves.

    Query heads that share a key head are folded into the query axis, so keys are never repeated. On CUDA a Triton
    kernel reads the visible slots alone; elsewhere, and in float64, a mask says which of the readable ones count.

    Args:
        module: The attention layer; only its class name is used, in errors.
        query: `[batch, heads, queries, head_dim]`.
        key: Readable slots, `[batch, key_heads, slots, head_dim]`.
        value: `[batch, key_heads, slots, value_dim]`.
        attention_mask: Ignored; visibility comes with the `ForwardBatch`.
        scaling: Factor on the scores; 1/sqrt(head_dim) when None.
        softcap: Scores are squashed to (-softcap, softcap) by tanh where set.
        **kwargs: Must hold the `ForwardBatch` under `BATCH_ARGUMENT`.

    Returns:
        `[batch, queries, heads, value_dim]` and None.

    Raises:
        UnsupportedModelError: The model does not pass keyword arguments on, or asks for attention sinks.
    """
    batch = kwargs.get(BATCH_ARGUMENT)
    if not isinstance(batch, ForwardBatch):
        raise UnsupportedModelError(
            f"{type(module).__name__} does not pass keyword arguments to its attention function, "
            "which tree attention needs; use a model that follows transformers' attention interface"
        )
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} uses attention sinks or position biases, which tree attention does not compute; "
            "use a model with plain softmax attention"
        )
    rows, heads, queries, head_dim = query.shape
    if kernel_serves(query, value):
        scale = head_dim**-0.5 if scaling is None else scaling
        return tree_attention_kernel(query, key, value, batch, scaling=scale, softcap=softcap), None
    groups = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * queries, head_dim)
    mask = batch.additive_mask(groups, query)
    if softcap is None:
        output = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        output = _softcapped_attention(folded, key, value, mask, scaling or head_dim**-0.5, softcap)
    # Some models flatten the heads with view, so the result must be contiguous as that of stock attention is.
    return output.reshape(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


def _softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float
) -> Tensor:
    scores = (query @ key.transpose(-1, -2)) * scaling
    scores = torch.tanh(scores / softcap) * softcap + mask
    return scores.float().softmax(-1).to(value.dtype) @ value


AttentionInterface.register(ATTENTION_NAME, tree_attention)
