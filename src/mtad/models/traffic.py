"""Bytes that a call of a model cannot avoid reading."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from mtad.models.int8_linear import Int8Linear
from mtad.models.packed_linear import PackedLinear, PackedSibling


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTraffic:
    """What one call of a model reads from memory at least.

    Attributes:
        weight_bytes: Every weight once, the input embedding aside.
        token_bytes: Keys and values of one cached token.
    """

    weight_bytes: int
    token_bytes: int

    def of_calls(self, num_calls: int, num_tokens: float) -> int:
        """Bytes of so many calls over so many cached tokens, all rows together."""
        return round(num_calls * (self.weight_bytes + num_tokens * self.token_bytes))


def call_traffic(model: Any) -> CallTraffic:
    """The traffic of a transformers causal language model, packed layers included."""
    weights = {id(weight): weight.nbytes for weight in model.parameters()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_read_by_head = isinstance(head, nn.Linear) and head.weight is embedding.weight
    if not is_read_by_head:
        weights.pop(id(embedding.weight), None)
    width = embedding.weight.element_size()
    packed = [module for module in model.modules() if isinstance(module, PackedLinear | PackedSibling)]
    packed_bytes = sum(module.in_features * module.out_features * width for module in packed)
    packed_bytes += sum(module.weight_bytes for module in model.modules() if isinstance(module, Int8Linear))
    config = model.config.get_text_config(decoder=True)
    heads = int(config.num_attention_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return CallTraffic(
        weight_bytes=sum(weights.values()) + packed_bytes,
        token_bytes=2 * int(config.num_hidden_layers) * key_heads * head_dim * width,
    )
