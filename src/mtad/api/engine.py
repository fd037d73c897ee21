"""The engine: loads a pair of models and decodes with any method."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, overload

from mtad.api.constraints import ConstraintReader, read_grammar_files, spell_constraints
from mtad.api.memory import memory_errors
from mtad.api.prompts import Prompt, PromptFormat, encode_prompt
from mtad.config import GenerationOptions, ModelOptions, replace_settings
from mtad.decoding import (
    AnswerLimits,
    DecoderShelf,
    Request,
    RunFacts,
    check_traceable,
    exit_layers,
    generate_pieces,
    needs_draft_model,
    recording,
    resolve_pair,
)
from mtad.errors import CapacityError, ConfigError, MtadError
from mtad.models.loading import LoadedModels, load_models, load_stock_models
from mtad.models.runner import ModelRunner
from mtad.structures import GenerationResult, LogitsProcessor, Piece, RowConstraints, RowSettings

DEFAULT_BATCH_SIZE = 8


class Engine:
    """A target, its draft and a tokenizer, ready to decode.

    One call decodes at a time; a second one while a stream is open raises `MtadError`.

    Args:
        models: What `load_models` returned.
    """

    def __init__(self, models: LoadedModels) -> None:
        self.models = models
        self.tokenizer = models.tokenizer
        self._constraints = ConstraintReader(models.tokenizer, models.target.vocab_size, models.defaults.eos_token_ids)
        self._shelf = DecoderShelf(models.target, models.draft)
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, target: str = "smollm2", *, draft: str | None = None, **options: Any) -> Self:
        """Load a pair of models.

        Args:
            target: `smollm2` (the default pair), a local folder, or a hub id.
            draft: Folder or hub id of the auxiliary model; the default pair brings its own.
            **options: Further fields of `ModelOptions`: `adapter`, `device`, `dtype`, `device_map`, `revision`,
                `match_vocabularies`.

        Raises:
            ModelLoadError: Something cannot be loaded, or the two do not fit.
        """
        base = ModelOptions(target=target, draft=draft)
        return cls(load_models(replace_settings(base, options, "from_pretrained")))

    @overload
    def generate(self, prompts: str, options: GenerationOptions | None = None, **changes: Any) -> GenerationResult: ...

    @overload
    def generate(
        self, prompts: Sequence[Prompt], options: GenerationOptions | None = None, **changes: Any
    ) -> list[GenerationResult]: ...

    def generate(
        self, prompts: str | Sequence[Prompt], options: GenerationOptions | None = None, **changes: Any
    ) -> GenerationResult | list[GenerationResult]:
        """Decode one prompt or a list of them.

        Args:
            prompts: One text, or a list of texts, token id lists or conversations. A single conversation or token
                list goes into a list of one.
            options: Settings; defaults where not given.
            **changes: Single settings by name, and what `stream` takes.

        Returns:
            One result for a text, else a list in the order of the prompts.
        """
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        found = {piece.row: piece.result for piece in self.stream(batch, options, **changes) if piece.result}
        return _in_order(found, prompts)

    def stream(
        self,
        prompts: str | Sequence[Prompt],
        options: GenerationOptions | None = None,
        *,
        style: PromptFormat | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        trace: str | Path | None = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        **changes: Any,
    ) -> Generator[Piece, None, None]:
        """Decode and yield pieces as they become final, with the provenance of every token.

        Args:
            prompts: As in `generate`.
            options: Settings; defaults where not given.
            style: How text prompts are wrapped.
            batch_size: Prompts decoded at a time.
            trace: File that keeps every step, for `mtad.replay_trace`; overwritten. Needs pyarrow.
            logits_processor: Called on the host at every place of the text, `(input_ids, scores)` with one row each, as
                transformers' own; must be pure functions.
            **changes: Single settings by name; `logit_bias` and `json_schema` also as dictionaries.

        Raises:
            ConfigError: A setting is out of bounds or does not fit the others.
            PromptError: A prompt is empty or malformed.
            CapacityError: A prompt does not fit the model or the memory.
            TraceError: The trace cannot be written.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be a whole number >= 1, got {batch_size}")
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        changes = spell_constraints(changes, self.tokenizer)
        resolved = self.resolve(replace_settings(options or GenerationOptions(), changes, "generate"))
        constraints = self._constraints.read(resolved, logits_processor)
        token_ids = [encode_prompt(self.tokenizer, prompt, style or PromptFormat()) for prompt in batch]
        requests = [self._request(row, prompt, resolved, constraints) for row, prompt in enumerate(token_ids)]
        if trace is not None:
            check_traceable(resolved)
        return self._run(requests, resolved, batch_size, None if trace is None else Path(trace))

    async def generate_async(
        self, prompts: str | Sequence[Prompt], options: GenerationOptions | None = None, **changes: Any
    ) -> GenerationResult | list[GenerationResult]:
        """`generate` in a worker thread; cancelling it stops the work after the iteration at hand."""
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        found = {}
        async with aclosing(self.stream_async(batch, options, **changes)) as pieces:
            async for piece in pieces:
                if piece.result is not None:
                    found[piece.row] = piece.result
        return _in_order(found, prompts)

    async def stream_async(
        self, prompts: str | Sequence[Prompt], options: GenerationOptions | None = None, **changes: Any
    ) -> AsyncGenerator[Piece, None]:
        """`stream` in a worker thread, one iteration at a time; closing it stops the work."""
        pieces = self.stream(prompts, options, **changes)
        step: asyncio.Future[Piece | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
                piece = await asyncio.shield(step)
                if piece is None:
                    break
                yield piece
        finally:
            if step is not None:
                # A cancelled caller leaves its iteration running, and a running generator cannot be closed.
                await asyncio.gather(step, return_exceptions=True)
            pieces.close()

    def resolve(self, options: GenerationOptions) -> GenerationOptions:
        """Fill what is open: sampling from the model's generation config, else 1.0 / top-k 10 / top-p 0.9; exit layers.

        Raises:
            ConfigError: More exit layers than the target has, or a grammar's file cannot be read.
        """
        defaults = self.models.defaults
        choices = {
            "temperature": (options.temperature, defaults.temperature, 1.0),
            "top_k": (options.top_k, defaults.top_k, 10),
            "top_p": (options.top_p, defaults.top_p, 0.9),
            "min_p": (options.min_p, defaults.min_p, 0.0),
            # Methods without a draft take no penalty, so the model's own is no default there.
            "repetition_penalty": (
                options.repetition_penalty,
                defaults.repetition_penalty if resolve_pair(options) else None,
                1.0,
            ),
        }
        filled: dict[str, Any] = {
            name: next(value for value in values if value is not None) for name, values in choices.items()
        }
        filled["exit_layers"] = exit_layers(options, self.models.target)
        return replace(read_grammar_files(options), **filled)

    def settings_record(self, options: GenerationOptions) -> dict[str, Any]:
        """Every setting of a run, resolved and with the models', as results keep it."""
        return asdict(self.resolve(options)) | {"models": asdict(self.models.options)}

    def load_stock_models(self) -> tuple[Any, Any | None]:
        """Target and draft once more as transformers runs them; see `mtad.models.loading.load_stock_models`."""
        return load_stock_models(self.models.options)

    def _request(self, row: int, prompt: list[int], options: GenerationOptions, constraints: RowConstraints) -> Request:
        limit = self._position_limit(options)
        if limit is not None and len(prompt) >= limit:
            raise CapacityError(
                f"prompt {row + 1} has {len(prompt)} tokens, but the models read at most {limit}, "
                "the answer included; shorten the prompt"
            )
        room = options.max_new_tokens if limit is None else min(options.max_new_tokens, limit - len(prompt))
        assert options.temperature is not None
        assert options.top_k is not None
        assert options.top_p is not None
        assert options.min_p is not None
        return Request(
            row=row,
            prompt=prompt,
            settings=RowSettings(
                seed=options.seed,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                threshold=options.threshold,
                draft_confidence=options.draft_confidence,
                min_p=options.min_p,
                constraints=constraints,
            ),
            limits=AnswerLimits(
                max_new_tokens=room, eos_token_ids=self._eos_token_ids(options), stop=tuple(options.stop)
            ),
        )

    def _position_limit(self, options: GenerationOptions) -> int | None:
        runners: list[ModelRunner] = [self.models.target]
        if needs_draft_model(options) and self.models.draft is not None:
            runners.append(self.models.draft)
        limits = [runner.max_positions for runner in runners if runner.max_positions is not None]
        return min(limits, default=None)

    def _eos_token_ids(self, options: GenerationOptions) -> frozenset[int]:
        return frozenset() if options.ignore_eos else self.models.defaults.eos_token_ids

    def _run(
        self, requests: list[Request], options: GenerationOptions, batch_size: int, trace: Path | None
    ) -> Generator[Piece, None, None]:
        assert options.temperature is not None
        decoder = self._shelf.decoder(
            options,
            self._eos_token_ids(options),
            temperature=options.temperature,
            token_texts=self._token_texts,
            is_constrained=any(request.settings.constraints for request in requests),
        )
        facts = RunFacts(method=options.method, config=self.settings_record(options), gamma=decoder.gamma)

        def pieces() -> Generator[Piece, None, None]:
            with self._exclusive(), memory_errors(), recording(trace, decoder, options, facts, requests) as recorder:
                for start in range(0, len(requests), batch_size):
                    batch = requests[start : start + batch_size]
                    if recorder is not None:
                        recorder.begin(batch)
                    yield from generate_pieces(decoder, batch, self._decode, facts)

        return pieces()

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _token_texts(self) -> list[str]:
        """The text of every token by itself."""
        token_ids = [[token_id] for token_id in range(len(self.tokenizer))]
        texts: list[str] = self.tokenizer.batch_decode(token_ids, clean_up_tokenization_spaces=False)
        return texts

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise MtadError("the engine is already decoding; finish or close the other stream first")
        try:
            yield
        finally:
            self._lock.release()


def _in_order(
    found: dict[int, GenerationResult], prompts: str | Sequence[Prompt]
) -> GenerationResult | list[GenerationResult]:
    """Results by row in the order of the prompts; the only one for a text."""
    if isinstance(prompts, str):
        return found[0]
    return [found[row] for row in range(len(prompts))]
