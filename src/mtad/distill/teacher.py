"""The target as a teacher: hidden states of whole texts, and logits of a few tokens at a time."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mtad.distill.fast_llama import FastLlama, find_fast_llama
from mtad.errors import UnsupportedModelError

_PROBE_LENGTH = 8


class Teacher:
    """Logits of a frozen model over whole texts, with its own attention.

    Where the output head is all that follows the hidden states, only those are kept; else the model's whole logits, in
    its own dtype.

    Args:
        model: A loaded causal language model.
        vocab_size: Leading logits to use.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self._is_plain = has_plain_head(model)
        self._fast = find_fast_llama(model)

    @torch.no_grad()
    def encode(self, tokens: Tensor, places: Tensor, layout: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """What `logits` needs of some places of the texts.

        Args:
            tokens: Right-padded texts, `[rows, tokens]` int64.
            places: Flat indices into them, `[places]` int64.
            layout: Positions and mask, where trees stand beside the texts.
        """
        if self._is_plain:
            return read_places(self.model, self._fast, tokens, places, layout)
        logits: Tensor = self.model(input_ids=tokens, use_cache=False, **layout).logits
        return logits.flatten(0, 1)[places]

    @torch.no_grad()
    def logits(self, encoded: Tensor) -> Tensor:
        """`[places, vocab]` from what `encode` gave."""
        found: Tensor = self.model.get_output_embeddings()(encoded) if self._is_plain else encoded
        return found[:, : self.vocab_size]


def last_hidden(model: Any, tokens: Tensor, **layout: Tensor) -> Tensor:
    """The hidden states that the output head reads, `[rows, tokens, hidden]`; positions and mask may be given."""
    hidden: Tensor = model.base_model(input_ids=tokens, use_cache=False, **layout).last_hidden_state
    return hidden


def read_places(
    model: Any,
    fast: FastLlama | None,
    tokens: Tensor,
    places: Tensor,
    layout: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The hidden states that the output head reads, of some places, `[places, hidden]`.

    Args:
        model: Teacher or draft.
        fast: A faster way for texts that no trees stand beside, where there is one.
        tokens: `[rows, tokens]` int64.
        places: Flat indices into them, each once, `[places]` int64.
        layout: Positions and mask, where trees stand beside the texts.
        dtype: Of the fast way's products; the model's own when None.
    """
    if fast is None or layout:
        hidden = last_hidden(model, tokens, **layout)
    else:
        hidden = fast.hidden(tokens, dtype or model.dtype)
    # Places occur once, so that the gradient is a plain scatter.
    return hidden.flatten(0, 1).index_select(0, places)


def use_own_attention(model: Any) -> None:
    """Switch a model that was served with tree attention back to an attention that reads whole texts."""
    config = model.config.get_text_config(decoder=True)
    is_capped = getattr(config, "attn_logit_softcapping", None) is not None
    model.set_attn_implementation("eager" if is_capped or not getattr(model, "_supports_sdpa", False) else "sdpa")


@torch.no_grad()
def has_plain_head(model: Any) -> bool:
    """Whether the logits are the output head's product with the hidden states and nothing else, as measured."""
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    device = model.get_input_embeddings().weight.device
    tokens = torch.arange(_PROBE_LENGTH, device=device).unsqueeze(0)
    hidden = last_hidden(model, tokens)
    if hidden.shape[-1] != getattr(head, "in_features", -1):
        return False
    logits, product = model(input_ids=tokens, use_cache=False).logits.double(), head(hidden).double()
    return bool((logits - product).abs().max() <= 0.02 * logits.abs().max())


def check_plain_head(model: Any, name: str) -> None:
    """Raise unless a draft can be trained by the fused loss.

    Raises:
        UnsupportedModelError: Its logits are more than a product with its output head.
    """
    head = model.get_output_embeddings()
    if not has_plain_head(model) or getattr(head, "bias", None) is not None:
        raise UnsupportedModelError(
            f"got the draft {name} of type {model.config.model_type} whose logits are more than a product with its "
            "output head, expected a Llama-like one; use --init pca"
        )
