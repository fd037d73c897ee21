"""Drives any Hugging Face causal language model that follows the attention interface."""

import inspect
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtad.errors import CapacityError
from mtad.models.architecture import check_architecture, longest_sequence, smallest_window, unsupported
from mtad.models.attention import ATTENTION_NAME, BATCH_ARGUMENT
from mtad.models.cache import SlotCache
from mtad.models.early_exit import first_layers
from mtad.models.forward import ForwardBatch
from mtad.models.fused_decoder import FusedDecoder, can_fuse
from mtad.models.graphs import places_of
from mtad.models.runner import ModelRunner
from mtad.models.traffic import call_traffic
from mtad.models.triton_decoder import TritonDecoder, can_fuse_layers


class TransformersRunner(ModelRunner):
    """A `transformers` causal language model over a static slot cache with tree attention.

    Args:
        model: A loaded decoder-only model; its attention implementation is switched in place.
        vocab_size: Use only so many leading logits, for vocabularies padded to different widths.
        fuses: Use kernels for whole layers where they compute just what the model's modules do; on CUDA the weights of
            neighbouring layers then move into one matrix, and the model's parameters become views of it.

    Raises:
        UnsupportedModelError: The architecture cannot be served; the message names it.
    """

    def __init__(self, model: Any, *, vocab_size: int | None = None, fuses: bool = True) -> None:
        check_architecture(type(model), model.config)
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        width = int(self.config.vocab_size)
        self.vocab_size = min(width, vocab_size or width)
        self.device = model.get_input_embeddings().weight.device
        self.max_positions = longest_sequence(self.config)
        self.num_layers = int(self.config.num_hidden_layers)
        self.max_slots = smallest_window(self.config)
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        if "position_ids" not in parameters:
            raise unsupported(type(model), model.config, "its forward call takes no positions")
        self.cache: SlotCache | None = None
        self._fused = _fused_decoder(model, self.vocab_size) if fuses else None

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
            raise unsupported(type(self.model), self.model.config, "its attention cannot be replaced")

    def first_layers(self, count: int) -> "TransformersRunner":
        """See `ModelRunner.first_layers`; the weights are shared."""
        shorter = first_layers(self.model, count)
        return TransformersRunner(shorter, vocab_size=self.vocab_size, fuses=self._fused is not None)

    @property
    def can_be_captured(self) -> bool:
        """See `ModelRunner.can_be_captured`; a model spread over devices cannot be."""
        return self.device.type == "cuda" and {weight.device for weight in self.model.parameters()} == {self.device}

    @property
    def cache_bytes(self) -> int:
        """See `ModelRunner.cache_bytes`."""
        return 0 if self.cache is None else sum(tensor.nbytes for tensor in self.cache.tensors())

    @property
    def slot_bytes(self) -> int:
        """See `RowState.slot_bytes`."""
        return call_traffic(self.model).token_bytes

    def layout(self) -> tuple[Hashable, ...]:
        """See `RowState.layout`."""
        return (
            *super().layout(),
            *places_of([] if self.cache is None else self.cache.in_use(tuple(self.cache.tensors()))),
        )

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """One call of the model; see `ModelRunner.forward`."""
        positions = batch.positions
        if self.max_positions is not None:
            positions = positions.clamp(max=self.max_positions - 1)
        if self._fused is not None:
            return self._fused.forward(batch, positions, self._allocated)
        self._allocated.aim(batch.slots, batch.num_slots)
        arguments: dict[str, Any] = {BATCH_ARGUMENT: batch}
        if self._keeps_logits:
            arguments["logits_to_keep"] = _trailing(batch)
        logits: Tensor = self.model(
            input_ids=batch.tokens,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **arguments,
        ).logits
        return logits[:, -batch.num_logits :, : self.vocab_size].to(self.device)

    def front_rows(self, rows: Tensor, longest: int) -> None:
        """Bring the named rows of the whole cache to its front, where it is; the rows behind them begin anew.

        Args:
            rows: In that order, `[kept]` int64, each once.
            longest: None of them has more cached tokens.
        """
        self._allocated.front_rows(rows, min(longest, self.num_slots))
        lengths = self.use.all_lengths
        lengths[: len(rows)] = lengths[rows]
        lengths[len(rows) :] = 0

    def release(self) -> None:
        """See `ModelRunner.release`."""
        super().release()
        self.cache = None

    def _slots_for(self, capacity: int) -> int:
        slots = super()._slots_for(capacity)
        return slots if self.max_slots is None else max(capacity + 1, min(slots, self.max_slots))

    def _slots_at_hand(self, batch_size: int) -> int:
        return 0 if self.cache is None or self.cache.total_rows != batch_size else self.cache.num_slots

    def _allocate_slots(self, batch_size: int, num_slots: int) -> None:
        if self.max_slots is not None and num_slots > self.max_slots:
            raise CapacityError(
                f"{self.config.model_type} attends over a window of {self.max_slots} tokens, but prompt, answer "
                f"and draft need {num_slots}; shorten the prompt or lower --max-new-tokens"
            )
        self.cache = SlotCache(self.config.num_hidden_layers, batch_size, num_slots)

    def _use_slots(self, first_row: int, num_rows: int) -> None:
        self._allocated.use_rows(first_row, num_rows)

    def _select_slots(self, rows: Tensor) -> None:
        self._allocated.select_rows(rows)

    def _move_slots(self, sources: Tensor, targets: Tensor) -> None:
        if self._fused is not None:
            self._fused.move(self._allocated, sources, targets)
        else:
            self._allocated.move(sources, targets)

    def _copy_slots(self, source: int, target: int, num_slots: int) -> None:
        self._allocated.copy_row(source, target, num_slots)

    def _swap_slots(self, first: int, second: int, num_slots: int) -> None:
        self._allocated.swap_rows(first, second, num_slots)

    @property
    def _allocated(self) -> SlotCache:
        assert self.cache is not None, "allocate() comes before the cache is used"
        return self.cache


def _fused_decoder(model: Any, vocab_size: int) -> FusedDecoder | TritonDecoder | None:
    """The kernels that do what the model's modules do, or None where there are none."""
    if can_fuse(model):
        return FusedDecoder(model, vocab_size)
    return TritonDecoder(model, vocab_size) if can_fuse_layers(model) else None


def _trailing(batch: ForwardBatch) -> int | Tensor:
    """What to say as `logits_to_keep`: 0 for all positions, else the indices of the trailing ones.

    A count would make transformers slice, and a matrix product of a sliced batch copies the head once a row.
    """
    queries = batch.tokens.shape[1]
    if batch.num_logits == queries:
        return 0
    return torch.arange(queries - batch.num_logits, queries, device=batch.tokens.device)
