"""The engine: loads a pair of models and decodes with any method."""

import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Self, overload

from mtad.api.constraints import spell_constraints
from mtad.api.memory import CacheSize, memory_errors
from mtad.api.prompts import Prompt, PromptFormat, encode_prompt
from mtad.api.requests import RequestReader
from mtad.api.session import BatchSession
from mtad.api.streams import in_order, in_worker_thread
from mtad.config import GenerationOptions, ModelOptions, SessionOptions, replace_settings
from mtad.decoding import (
    BatchRoom,
    Clock,
    DecoderShelf,
    Machine,
    Request,
    RollingBatch,
    RollingShelf,
    RunFacts,
    check_traceable,
    generate_pieces,
    recording,
    resolve_pair,
    roll_requests,
)
from mtad.errors import ConfigError, MtadError
from mtad.models.loading import LoadedModels, load_models, load_stock_models
from mtad.models.scoring import TokenScores, score_sequences
from mtad.models.traffic import CallTraffic, call_traffic
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import GenerationResult, LogitsProcessor, Piece

DEFAULT_BATCH_SIZE = 8
_LIST_CHUNK = 2048


class Engine:
    """A target, its draft and a tokenizer, ready to decode.

    One call decodes at a time; a second one while a stream is open raises `MtadError`.

    Args:
        models: What `load_models` returned.
        clock: Seconds since any fixed moment, by which iterations are guarded; the machine's own when None.
    """

    def __init__(self, models: LoadedModels, clock: Clock | None = None) -> None:
        self.models = models
        self.tokenizer = models.tokenizer
        self._reader = RequestReader(models)
        self._machine = Machine(clock=clock or perf_counter)
        self._shelf = DecoderShelf(models.target, models.draft, self._machine)
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, target: str = "smollm2", *, draft: str | None = None, **options: Any) -> Self:
        """Load a pair of models.

        Args:
            target: `smollm2` (the default pair), a local folder, or a hub id.
            draft: Folder or hub id of the auxiliary model; the default pair brings its own.
            **options: Further fields of `ModelOptions`: `adapter`, `device`, `dtype`, `quantization`, `threads`,
                `device_map`, `revision`, `match_vocabularies`.

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
        return in_order(found, prompts)

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
            batch_size: Prompts decoded at a time; of more prompts, the next one begins where an answer has ended.
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
        asked = replace_settings(options or GenerationOptions(), changes, "generate")
        if trace is not None:
            check_traceable(asked)
            asked = asked.for_measurement()
        resolved = self.resolve(asked)
        constraints = self._reader.constraints(resolved, logits_processor)
        token_ids = [encode_prompt(self.tokenizer, prompt, style or PromptFormat()) for prompt in batch]
        requests = [
            self._reader.request(row, prompt, resolved, constraints, name=f"prompt {row + 1}")
            for row, prompt in enumerate(token_ids)
        ]
        return self._run(requests, resolved, batch_size, None if trace is None else Path(trace))

    def session(
        self,
        max_rows: int = 16,
        max_tokens: int = 4096,
        prefill_chunk: int = 256,
        max_waiting: int | None = None,
    ) -> BatchSession:
        """Open a session, in which requests join and leave at any time; the engine is busy until it is closed.

        Args:
            max_rows: Requests decoded at a time; others wait.
            max_tokens: Tokens of prompt and answer that a request can have, if the models read that many.
            prefill_chunk: Prompt tokens read between two iterations.
            max_waiting: Requests that may wait before others are refused; None for any number.

        Raises:
            ConfigError: A number is out of bounds.
            MtadError: The engine is decoding already.
        """
        options = SessionOptions(
            max_rows=max_rows, max_tokens=max_tokens, prefill_chunk=prefill_chunk, max_waiting=max_waiting
        )
        held = ExitStack()
        held.enter_context(self.exclusive())
        with ExitStack() as on_error:
            on_error.push(held)
            session = BatchSession(
                self.models,
                self._reader,
                options,
                decode=self._decode,
                token_texts=self._token_texts,
                settings_record=self.settings_record,
                machine=self._machine,
                release=held.close,
            )
            on_error.pop_all()
        return session

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
        return in_order(found, prompts)

    async def stream_async(
        self, prompts: str | Sequence[Prompt], options: GenerationOptions | None = None, **changes: Any
    ) -> AsyncGenerator[Piece, None]:
        """`stream` in a worker thread, one iteration at a time; closing it stops the work."""
        async with aclosing(in_worker_thread(self.stream(prompts, options, **changes))) as pieces:
            async for piece in pieces:
                yield piece

    def resolve(self, options: GenerationOptions) -> GenerationOptions:
        """Fill what is open: sampling from the model's generation config, else 1.0 / top-k 10 / top-p 0.9; exit layers.

        Where no seed is given it is 0, `guard` auto becomes on, and `compile` auto becomes background on CUDA. Else
        both become off.

        Raises:
            ConfigError: More exit layers than the target has, or a grammar's file cannot be read.
        """
        return self._reader.resolve(options)

    def settings_record(self, options: GenerationOptions) -> dict[str, Any]:
        """Every setting of a run, resolved and with the models', as results keep it."""
        return asdict(self.resolve(options)) | {"models": asdict(self.models.options)}

    def score(self, sequences: Sequence[Sequence[int]], *, batch_size: int = DEFAULT_BATCH_SIZE) -> list[TokenScores]:
        """Log-probabilities of given token ids under the target, each token but the first; batched as they come.

        Raises:
            CapacityError: A text does not fit the model or the memory.
        """
        with self.exclusive(), memory_errors():
            batches = [sequences[start : start + batch_size] for start in range(0, len(sequences), batch_size)]
            return [scores for batch in batches for scores in score_sequences(self.models.target, batch)]

    def traffic(self) -> tuple[CallTraffic, CallTraffic | None]:
        """What one call of the target, and of the draft where it is a plain model, must read from memory."""
        target, draft = self.models.target, self.models.draft
        return call_traffic(target.model), call_traffic(draft.model) if isinstance(draft, TransformersRunner) else None

    def load_stock_models(self) -> tuple[Any, Any | None]:
        """Target and draft once more as transformers runs them; see `mtad.models.loading.load_stock_models`."""
        return load_stock_models(self.models.options)

    def _run(
        self, requests: list[Request], options: GenerationOptions, batch_size: int, trace: Path | None
    ) -> Generator[Piece, None, None]:
        assert options.temperature is not None
        decoder = self._shelf.decoder(
            options,
            self._reader.eos_token_ids(options),
            temperature=options.temperature,
            token_texts=self._token_texts,
            is_constrained=any(request.settings.constraints for request in requests),
        )
        config = self.settings_record(options)
        facts = RunFacts(method=options.method, config=config, gamma=decoder.gamma)
        longest = max(len(request.prompt) + request.limits.max_new_tokens for request in requests) if requests else 0
        size = CacheSize.of(decoder.states, min(batch_size, len(requests)), longest)

        def rolling() -> Generator[Piece, None, None]:
            with self.exclusive(), memory_errors(size):
                yield from roll_requests(self._rolling_batch(longest, batch_size), requests, options, config)

        def pieces() -> Generator[Piece, None, None]:
            recorded = recording(trace, decoder, options, facts, requests)
            with self.exclusive(), memory_errors(size), recorded as recorder:
                for start in range(0, len(requests), batch_size):
                    batch = requests[start : start + batch_size]
                    if recorder is not None:
                        recorder.begin(batch)
                    yield from generate_pieces(decoder, batch, self._decode, facts)

        is_refilled = len(requests) > batch_size and trace is None and resolve_pair(options) is not None
        return rolling() if is_refilled else pieces()

    def _rolling_batch(self, longest: int, batch_size: int) -> RollingBatch:
        """A batch with room for texts of `longest` tokens, whose places are taken by the next ones."""
        room = BatchRoom(max_rows=batch_size, max_tokens=longest, prefill_chunk=_LIST_CHUNK)
        shelf = RollingShelf(self.models.target, self.models.draft, room, self._token_texts, self._machine)
        return RollingBatch(shelf, room, self._decode)

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _token_texts(self) -> list[str]:
        """The text of every token by itself."""
        alone = [[token] for token in range(len(self.tokenizer))]
        texts: list[str] = self.tokenizer.batch_decode(alone, clean_up_tokenization_spaces=False)
        return texts

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the models alone; refuses where somebody decodes already."""
        if not self._lock.acquire(blocking=False):
            raise MtadError("the engine is already decoding; finish or close the other stream first")
        try:
            yield
        finally:
            self._lock.release()
