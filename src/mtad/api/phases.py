"""Drafting and scoring apart, for those who measure what each takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mtad.api.engine import Engine
from mtad.api.memory import memory_errors
from mtad.api.prompts import Prompt, PromptFormat, encode_prompt
from mtad.api.requests import RequestReader
from mtad.config import GenerationOptions
from mtad.decoding import build_decoder, resolve_pair
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.phases import PhaseLoop
from mtad.errors import UnsupportedOperationError
from mtad.models.graphs import CudaGraphCapture

__all__ = ["PhaseLoop", "open_phases"]


@contextmanager
def open_phases(
    engine: Engine, prompts: Sequence[Prompt], options: GenerationOptions, *, style: PromptFormat | None = None
) -> Iterator[PhaseLoop]:
    """The phases of a method over a batch whose prompts have been read; the engine is busy meanwhile.

    Args:
        engine: The models.
        prompts: One batch.
        options: Method and shape.
        style: How text prompts are wrapped.

    Raises:
        UnsupportedOperationError: The method has a decoder of its own, without these phases.
        CapacityError: The prompts do not fit the models or the memory.
    """
    resolved = engine.resolve(options)
    if resolve_pair(resolved) is None:
        raise UnsupportedOperationError(f"{options.method} has no phases of drafting and scoring")
    reader = RequestReader(engine.models)
    constraints = reader.constraints(resolved)
    token_ids = [encode_prompt(engine.tokenizer, prompt, style or PromptFormat()) for prompt in prompts]
    requests = [reader.request(row, prompt, resolved, constraints) for row, prompt in enumerate(token_ids)]
    assert resolved.temperature is not None
    with engine.exclusive(), memory_errors():
        decoder = build_decoder(
            resolved,
            engine.models.target,
            engine.models.draft,
            reader.eos_token_ids(resolved),
            temperature=resolved.temperature,
            is_constrained=bool(constraints),
        )
        assert isinstance(decoder, AssistedDecoder)
        decoder.prefill(
            [list(request.prompt) for request in requests],
            [request.settings for request in requests],
            [request.limits.max_new_tokens for request in requests],
        )
        yield PhaseLoop(decoder, None if decoder.loop is None else CudaGraphCapture())
