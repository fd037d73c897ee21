"""Drives any Hugging Face causal language model that follows the attention interface."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtad.errors import CapacityError, UnsupportedModelError
from mtad.models.attention import ATTENTION_NAME, BATCH_ARGUMENT
from mtad.models.cache import SlotCache
from mtad.models.forward import ForwardBatch
from mtad.models.runner import ModelRunner

_FULL_ATTENTION_TYPES = {"full_attention", "sliding_attention"}


class TransformersRunner(ModelRunner):
    """A `transformers` causal language model over a static slot cache with tree attention.

    Args:
        model: A loaded decoder-only model; its attention implementation is switched in place.
        vocab_size: Use only so many leading logits, for vocabularies padded to different widths.

    Raises:
        UnsupportedModelError: The architecture cannot be served; the message names it.
    """

    def __init__(self, model: Any, *, vocab_size: int | None = None) -> None:
        check_architecture(model)
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        width = int(self.config.vocab_size)
        self.vocab_size = min(width, vocab_size or width)
        self.device = model.get_input_embeddings().weight.device
        self.max_positions = getattr(self.config, "max_position_embeddings", None)
        self._sliding_window = smallest_window(self.config)
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters
        self.cache: SlotCache | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Use tree attention inside the block and restore the model's own attention after it."""
        before = self.config._attn_implementation
        self.attach()
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def attach(self) -> None:
        """Switch the model to tree attention for good."""
        self.model.set_attn_implementation(ATTENTION_NAME)
        if self.config._attn_implementation != ATTENTION_NAME:
            raise _unsupported(self.model, "its attention cannot be replaced")

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """One call of the model; see `ModelRunner.forward`."""
        assert self.cache is not None, "allocate() comes before forward()"
        self.cache.aim(batch.slots, batch.num_slots)
        positions = batch.positions
        if self.max_positions is not None:
            positions = positions.clamp(max=self.max_positions - 1)
        arguments: dict[str, Any] = {BATCH_ARGUMENT: batch}
        if self._keeps_logits:
            arguments["logits_to_keep"] = batch.num_logits
        logits: Tensor = self.model(
            input_ids=batch.tokens,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **arguments,
        ).logits
        return logits[:, -batch.num_logits :, : self.vocab_size].to(self.device)

    def select_rows(self, rows: Tensor) -> None:
        """See `ModelRunner.select_rows`."""
        assert self.cache is not None
        self.cache.select_rows(rows)
        self.lengths = self.lengths[rows]

    def _allocate_slots(self, batch_size: int, num_slots: int) -> None:
        if self._sliding_window is not None and num_slots > self._sliding_window:
            raise CapacityError(
                f"{self.config.model_type} attends over a window of {self._sliding_window} tokens, but prompt, answer "
                f"and draft need {num_slots}; shorten the prompt or lower --max-new-tokens"
            )
        self.cache = SlotCache(self.config.num_hidden_layers, batch_size, num_slots)

    def _move_slots(self, sources: Tensor, targets: Tensor) -> None:
        assert self.cache is not None
        self.cache.move(sources, targets)


def smallest_window(config: Any) -> int | None:
    """Tokens the narrowest attention layer sees, or None where every layer sees all."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    if not getattr(config, "use_sliding_window", True):
        return None
    return getattr(config, "sliding_window", None)


def check_architecture(model: Any) -> None:
    """Refuse by name what tree attention over a static cache cannot serve.

    Raises:
        UnsupportedModelError: Encoder-decoder, state-space, hybrid or non-interface attention models.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise _unsupported(model, "it is an encoder-decoder model")
    if getattr(model, "_is_stateful", False):
        raise _unsupported(model, "its state-space or hybrid cache cannot be rolled back")
    layer_types = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())
    if not layer_types <= _FULL_ATTENTION_TYPES:
        raise _unsupported(model, f"it has layers of type {sorted(layer_types - _FULL_ATTENTION_TYPES)}")
    if not getattr(model, "_supports_attention_backend", False):
        raise _unsupported(model, "it does not follow transformers' attention interface")


def _unsupported(model: Any, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} ({model.config.model_type}) cannot be served: {reason}; "
        "use a decoder-only model with full attention, such as Llama, Qwen, Mistral, Gemma, GPT-2, OPT or GPT-NeoX"
    )
