"""Continuous batching over one engine: requests join and leave between iterations."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from mtad.api.memory import CacheSize, memory_errors
from mtad.api.prompts import Prompt, PromptFormat, encode_prompt
from mtad.api.requests import RequestReader
from mtad.config import GenerationOptions, SessionOptions
from mtad.decoding import BatchRoom, Machine, Request, RollingBatch, RollingShelf
from mtad.decoding.text import Decode
from mtad.errors import CapacityError, MtadError
from mtad.models.loading import LoadedModels
from mtad.models.runner import ModelRunner
from mtad.structures import LogitsProcessor, Piece


class BatchSession:
    """Decodes requests together as they come; `Engine.session` makes one and the engine is busy until `close`.

    Not thread-safe: one thread calls it. Requests may differ in everything: those of the same drafter, rule and shape
    share every iteration, others take turns within a step. An answer is the one that the request would get alone, up to
    the rounding of larger matrix products.

    Args:
        models: The models; nobody else decodes with them until `close`.
        reader: Makes requests for these models.
        options: Size of the session.
        decode: Turns token ids into text.
        token_texts: Gives the text of every token by itself.
        settings_record: Every setting of a run, as results keep it.
        machine: Times iterations, and records them on CUDA.
        release: Called once the session is closed.

    Attributes:
        cache_size: What its caches take when all rows are full.
    """

    def __init__(
        self,
        models: LoadedModels,
        reader: RequestReader,
        options: SessionOptions,
        *,
        decode: Decode,
        token_texts: Callable[[], Sequence[str]],
        settings_record: Callable[[GenerationOptions], dict[str, Any]],
        machine: Machine,
        release: Callable[[], None],
    ) -> None:
        self.options = options
        self._tokenizer = models.tokenizer
        self._reader = reader
        self._settings_record = settings_record
        wanted = BatchRoom(
            max_rows=options.max_rows, max_tokens=options.max_tokens, prefill_chunk=options.prefill_chunk
        )
        self._room = wanted.fitted(models.target, models.draft)
        held: list[ModelRunner] = [models.target] if models.draft is None else [models.target, models.draft]
        self.cache_size = CacheSize.of(held, self._room.max_rows, self._room.max_tokens)
        shelf = RollingShelf(models.target, models.draft, self._room, token_texts, machine)
        self._batch = RollingBatch(shelf, self._room, decode)
        self._release: Callable[[], None] | None = release
        self._next_ticket = 0
        self._has_failed = False

    def submit(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        style: PromptFormat | None = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        explain: bool = False,
    ) -> int:
        """Queue a request; returns its ticket, which `Piece.row` says.

        Args:
            prompt: Text, token ids or a conversation.
            options: Settings; defaults where not given.
            style: How text prompts are wrapped.
            logits_processor: As in `Engine.stream`.
            explain: Attach to every piece what was drafted and why it was kept; iterations that are explained are not
                replayed from captures.

        Raises:
            ConfigError: A setting is out of bounds or does not fit the others.
            PromptError: The prompt is empty or malformed.
            CapacityError: The prompt does not fit, or `max_waiting` requests wait already.
            UnsupportedOperationError: The method has a decoder of its own.
            MtadError: The session is closed.
        """
        self._check_open()
        if self.options.max_waiting is not None and self._batch.num_waiting >= self.options.max_waiting:
            raise CapacityError(
                f"{self._batch.num_waiting} requests wait already and max_waiting is {self.options.max_waiting}; "
                "come back later"
            )
        request, resolved = self._read(prompt, options, style, logits_processor)
        with memory_errors(self.cache_size):
            self._batch.submit(request, resolved, config=self._settings_record(resolved), explains=explain)
        self._next_ticket += 1
        return request.row

    def check(self, prompt: Prompt, options: GenerationOptions | None = None) -> int:
        """Raise what `submit` would, queueing nothing; returns the most tokens that the answer can have."""
        self._check_open()
        request, resolved = self._read(prompt, options, None, ())
        with memory_errors():
            self._batch.check(request, resolved)
        return request.limits.max_new_tokens

    def cancel(self, ticket: int) -> None:
        """End a request; its last piece, of the next `step`, has the finish reason `cancelled`."""
        self._check_open()
        self._batch.cancel(ticket)

    def step(self) -> list[Piece]:
        """One iteration of everything that runs, behind at most one chunk of prompts; nothing to do gives no pieces.

        Raises:
            CapacityError: The memory is exhausted.
            MtadError: The session is closed, or a step before failed.
        """
        self._check_open()
        self._has_failed = True
        with memory_errors(self.cache_size):
            pieces = self._batch.step()
        self._has_failed = False
        return pieces

    @property
    def num_waiting(self) -> int:
        """Requests that have no row yet."""
        return self._batch.num_waiting

    @property
    def num_running(self) -> int:
        """Requests with a row whose answer has not ended."""
        return self._batch.num_running

    @property
    def cached_tokens(self) -> int:
        """Tokens that running requests hold in the caches."""
        return self._batch.num_cached

    @property
    def capacity_tokens(self) -> int:
        """Tokens that all rows could hold."""
        return self._room.max_rows * self._room.max_tokens

    def close(self) -> None:
        """Forget all requests and give the engine and the caches' memory back; may be called again."""
        if self._release is not None:
            release, self._release = self._release, None
            self._batch.close()
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(
        self,
        prompt: Prompt,
        options: GenerationOptions | None,
        style: PromptFormat | None,
        logits_processor: Sequence[LogitsProcessor],
    ) -> tuple[Request, GenerationOptions]:
        """The next request with its settings resolved."""
        resolved = self._reader.resolve(options or GenerationOptions())
        constraints = self._reader.constraints(resolved, logits_processor)
        token_ids = encode_prompt(self._tokenizer, prompt, style or PromptFormat())
        room = self._room.max_tokens
        return self._reader.request(self._next_ticket, token_ids, resolved, constraints, max_tokens=room), resolved

    def _check_open(self) -> None:
        if self._release is None:
            raise MtadError("the session is closed; open another one")
        if self._has_failed:
            raise MtadError("a step of the session has failed; close it and open another one")
