"""The decoders of a rolling batch: one for every drafter, rule and shape; what rows may differ in is left out."""

from dataclasses import dataclass, replace

import torch

from mtad.config import GenerationOptions
from mtad.decoding.explaining import StepExplainer
from mtad.decoding.generation import Request
from mtad.decoding.machine import Machine
from mtad.decoding.methods import (
    ASSISTED_METHODS,
    LoopDetails,
    TokenTexts,
    auxiliary_model,
    build_loop,
    resolve_pair,
)
from mtad.decoding.rolling_decoder import RollingDecoder
from mtad.errors import CapacityError, UnsupportedOperationError
from mtad.models.row_state import RowState
from mtad.models.runner import ModelRunner
from mtad.structures.tree import MAX_TREE_NODES

_SPARE_SLOTS = 3 * MAX_TREE_NODES + 4
"""Slots behind the text: the largest tree, two iterations past the end, and the pending tokens."""

_EVERY_ROW = GenerationOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRoom:
    """How large a rolling batch may become.

    Attributes:
        max_rows: Requests that are decoded at a time.
        max_tokens: Tokens of prompt and answer in one row.
        prefill_chunk: Prompt tokens that are read between two iterations, all rows together.
    """

    max_rows: int = 16
    max_tokens: int = 4096
    prefill_chunk: int = 256

    def fitted(self, target: ModelRunner, draft: ModelRunner | None) -> "BatchRoom":
        """The same with no more tokens than the models can read.

        Raises:
            CapacityError: A model's window has no room for text beside a draft.
        """
        models = [target] if draft is None else [target, draft]
        windows = [model.max_slots - 1 - _SPARE_SLOTS for model in models if model.max_slots is not None]
        positions = [] if target.max_positions is None else [target.max_positions]
        max_tokens = min([self.max_tokens, *windows, *positions])
        if max_tokens < 2:
            raise CapacityError(
                f"a model's attention window has room for {max_tokens} tokens beside a draft, expected at least 2; "
                "use Engine.generate with this model"
            )
        return replace(self, max_tokens=max_tokens)


class RollingShelf:
    """Builds decoders that share the rows of the same caches.

    Args:
        target: The large model.
        draft: The auxiliary model, where there is one.
        room: Size of the caches.
        token_texts: Gives the text of every token by itself.
        machine: Records iterations and times them; one of its own when None.
    """

    def __init__(
        self,
        target: ModelRunner,
        draft: ModelRunner | None,
        room: BatchRoom,
        token_texts: TokenTexts | None = None,
        machine: Machine | None = None,
    ) -> None:
        self._target = target
        self._draft = draft
        self._room = room
        self._token_texts = token_texts
        self._machine = machine or Machine()
        self._first_layers: dict[int, ModelRunner] = {}
        self._allocated: dict[int, RowState] = {}
        self._decoders: dict[object, RollingDecoder] = {}
        self._explainers: dict[RollingDecoder, StepExplainer] = {}

    @property
    def decoders(self) -> list[RollingDecoder]:
        """All decoders, the oldest first."""
        return list(self._decoders.values())

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches."""
        return sum(state.cache_bytes for state in self._allocated.values())

    def decoder(self, options: GenerationOptions, request: Request) -> RollingDecoder:
        """The decoder that a request shares with others of its method and shape.

        Args:
            options: Resolved settings of the request.
            request: The same as row settings and limits.

        Raises:
            ConfigError: The settings do not fit each other or the models.
            UnsupportedOperationError: The method has a decoder of its own.
            CapacityError: There is no memory for another cache.
        """
        pair = resolve_pair(options)
        if pair is None:
            raise UnsupportedOperationError(
                f"{options.method} does not share a batch with other requests; use one of "
                f"{', '.join(ASSISTED_METHODS)}, or Engine.generate"
            )
        is_constrained = bool(request.settings.constraints)
        key = (_shape_of(options), request.limits.eos_token_ids, is_constrained)
        if key not in self._decoders:
            details = LoopDetails(request.limits.eos_token_ids, self._token_texts, is_constrained, self._machine)
            decoder = build_loop(RollingDecoder, options, self._target, self._auxiliary(options), details)
            self._allocate(decoder)
            self._decoders[key] = decoder
            self._explainers[decoder] = StepExplainer(pair.verifier)
        return self._decoders[key]

    def explainer(self, decoder: RollingDecoder) -> StepExplainer:
        """The observer that explains a decoder's iterations."""
        return self._explainers[decoder]

    def drop(self, decoder: RollingDecoder) -> None:
        """Forget a decoder that no row needs."""
        self._decoders = {key: other for key, other in self._decoders.items() if other is not decoder}
        del self._explainers[decoder]
        held = {id(state.storage) for other in self.decoders for state in other.states}
        models = {id(model.storage) for model in (self._target, self._draft, *self._first_layers.values()) if model}
        self._allocated = {key: state for key, state in self._allocated.items() if key in held | models}

    def release(self) -> None:
        """Forget everything and give the caches' memory back."""
        self._decoders, self._explainers, self._allocated = {}, {}, {}
        for model in (self._target, self._draft, *self._first_layers.values()):
            if model is not None:
                model.release()

    def _auxiliary(self, options: GenerationOptions) -> ModelRunner | None:
        if options.exit_layers is None:
            return auxiliary_model(options, self._target, self._draft)
        if options.exit_layers not in self._first_layers:
            found = auxiliary_model(options, self._target, self._draft)
            if found is None:
                return None
            self._first_layers[options.exit_layers] = found
        return self._first_layers[options.exit_layers]

    @torch.inference_mode()
    def _allocate(self, decoder: RollingDecoder) -> None:
        for state in decoder.states:
            if id(state.storage) not in self._allocated:
                state.allocate(self._room.max_rows, self._room.max_tokens + _SPARE_SLOTS)
                self._allocated[id(state.storage)] = state.storage


def _shape_of(options: GenerationOptions) -> GenerationOptions:
    """The settings with those left out that rows of one decoder may differ in."""
    names = (
        "threshold",
        "draft_confidence",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "json_schema",
        "regex",
        "grammar",
        "max_new_tokens",
        "stop",
        "top_logprobs",
        "seed",
    )
    return replace(options, **{name: getattr(_EVERY_ROW, name) for name in names})
