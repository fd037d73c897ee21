"""Decoders that outlive a call, for what they have captured or learnt."""

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from mtad.config import GenerationOptions
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.decoder import Decoder
from mtad.decoding.machine import Machine
from mtad.decoding.methods import build_decoder
from mtad.models.runner import ModelRunner

_MAX_DECODERS = 8


class DecoderShelf:
    """Builds decoders for one pair of models and keeps those that capture their iterations or guard their drafts.

    A decoder that captures or guards is handed out again for the same method and shape, whatever the seed and the
    limits: its next batch then replays what the last one captured, and begins with what its guard has learnt. All of
    them share one scratch memory, and take turns.

    Args:
        target: The large model.
        draft: The auxiliary model, where there is one.
        machine: Records iterations and times them; one of its own when None.
    """

    def __init__(self, target: ModelRunner, draft: ModelRunner | None, machine: Machine | None = None) -> None:
        self._target = target
        self._draft = draft
        self._machine = machine or Machine()
        self._decoders: dict[Hashable, Decoder] = {}

    def decoder(self, options: GenerationOptions, eos_token_ids: frozenset[int], **details: Any) -> Decoder:
        """The decoder of a method.

        Args:
            options: Method, shape and rule.
            eos_token_ids: Tokens that end an answer.
            **details: What else `build_decoder` takes.

        Raises:
            ConfigError: As `build_decoder`.
        """
        shape = (replace(options, seed=0, max_new_tokens=1, stop=()), eos_token_ids, details.get("is_constrained"))
        if shape in self._decoders:
            return self._decoders[shape]
        decoder = build_decoder(options, self._target, self._draft, eos_token_ids, machine=self._machine, **details)
        if isinstance(decoder, AssistedDecoder) and (decoder.loop is not None or decoder.guard is not None):
            self._decoders[shape] = decoder
            if len(self._decoders) > _MAX_DECODERS:
                del self._decoders[next(iter(self._decoders))]
        return decoder
