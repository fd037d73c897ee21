"""The answers of one request: jobs for the engine, and what comes back from it."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mtad.config import GenerationOptions
from mtad.errors import CapacityError, MtadError
from mtad.server.metrics import ServerMetrics
from mtad.server.notes import RequestNote
from mtad.server.replies import Style, error_body, usage
from mtad.server.worker import Accepted, EngineFaultError, EngineWorker, Item, Job
from mtad.structures import GenerationResult, Piece

_log = logging.getLogger("mtad.server")
_TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may take.

    Attributes:
        seconds: Until it is given up.
        is_own: Whether the request asked for that, or the server sets it.
    """

    seconds: float
    is_own: bool


class OwnTimeoutError(TimeoutError):
    """The time that a request gave itself is over."""


class Answers:
    """Runs the jobs of one request; leaving it cancels those that have not ended.

    Args:
        worker: The engine's thread.
        metrics: Counts.
        note: What the log says of the request.
        prompts: Token ids of every choice.
        options: How to decode every choice.
        explains: Whether pieces say what was drafted.
        patience: With the whole request.
    """

    def __init__(
        self,
        worker: EngineWorker,
        metrics: ServerMetrics,
        note: RequestNote,
        prompts: Sequence[Sequence[int]],
        options: Sequence[GenerationOptions],
        *,
        explains: bool,
        patience: Patience,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[tuple[Job, Item]] = asyncio.Queue()
        self._worker, self._metrics, self._note = worker, metrics, note
        self._deadline, self._patience = loop.time() + patience.seconds, patience
        self._open = [
            Job(
                index=index,
                client=note.client,
                prompt=prompt,
                options=item,
                explains=explains,
                loop=loop,
                outbox=self._outbox,
            )
            for index, (prompt, item) in enumerate(zip(prompts, options, strict=True))
        ]
        self._clocks = {job: metrics.clock() for job in self._open}
        self._early: list[tuple[Job, Piece]] = []
        self.results: list[GenerationResult | None] = [None] * len(self._open)

    def __enter__(self) -> Self:
        self._metrics.open_answers.inc(len(self.results))
        for job in self._open:
            self._worker.submit(job)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._open:
            self._worker.cancel(job)
            self._end(job, "cancelled")
        self._open = []
        self._metrics.open_answers.dec(len(self.results))

    async def accepted(self) -> int:
        """Wait until every job waits for a row; returns the most tokens that an answer can have.

        Raises:
            MtadError: The request cannot be carried out.
            EngineFaultError: The engine failed.
            TimeoutError: The time is over.
        """
        rooms: list[int] = []
        while len(rooms) < len(self.results):
            job, item = await self._next()
            if isinstance(item, Accepted):
                rooms.append(item.max_tokens)
            else:
                self._early.append((job, item))
        return min(rooms)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces of all choices as they come, with the choice's index; after `accepted`, whose errors it raises."""
        while self._open:
            job, piece = self._early.pop(0) if self._early else await self._next()
            assert isinstance(piece, Piece)
            self._clocks[job].note(piece)
            if piece.token_ids:
                self._note.note_tokens(len(piece.token_ids))
            if piece.result is not None:
                self._open.remove(job)
                self.results[job.index] = piece.result
                self._end(job, piece.result.finish_reason)
            yield job.index, piece

    async def finished(self) -> list[GenerationResult]:
        """All results, once every choice has ended; raises what `pieces` does."""
        async for _ in self.pieces():
            pass
        return [result for result in self.results if result is not None]

    async def in_time(self, work: Any) -> None:
        """Wait for something no longer than for the request itself.

        Raises:
            TimeoutError: The time is over.
        """
        async with asyncio.timeout_at(self._deadline):
            await work

    async def _next(self) -> tuple[Job, Accepted | Piece]:
        try:
            async with asyncio.timeout_at(self._deadline):
                job, item = await self._outbox.get()
        except TimeoutError:
            raise (OwnTimeoutError if self._patience.is_own else TimeoutError)(self._patience.seconds) from None
        if isinstance(item, Exception):
            self._open.remove(job)
            self._end(job, "error")
            raise item
        return job, item

    def _end(self, job: Job, reason: str) -> None:
        self._metrics.note_end(reason)
        self._note.finish_reasons.append(reason)


class EventResponse(StreamingResponse):
    """A stream that is closed with the connection, and given up where the client does not read it in time.

    Args:
        events: Server-sent events.
        answers: Whose time bounds every send.
        close: Called at the end, whatever that is.
    """

    def __init__(self, events: AsyncGenerator[str, None], answers: Answers, close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._answers, self._close = events, answers, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            _log.warning("a client did not read its stream in time; its connection is closed")
        finally:
            await self._events.aclose()
            self._close()

    async def stream_response(self, send: Send) -> None:
        """See `StreamingResponse.stream_response`."""

        async def timely(message: Any) -> None:
            await self._answers.in_time(send(message))

        await super().stream_response(timely)


async def event_stream(
    answers: Answers, style: Style, *, has_usage: bool, num_prompt_tokens: int, request_id: str
) -> AsyncGenerator[str, None]:
    """Server-sent events of a streamed reply; a failure on the way is its last event but one.

    Args:
        answers: Entered already.
        style: Of the chunks.
        has_usage: Whether the last chunk counts tokens.
        num_prompt_tokens: Of all prompts, each once.
        request_id: For errors.
    """
    try:
        if style.kind == "chat":
            for index in range(len(answers.results)):
                yield _event(style.opening(index))
        async for index, piece in answers.pieces():
            yield _event(style.chunk(index, piece))
        if has_usage:
            done = [result for result in answers.results if result is not None]
            yield _event(style.frame([], is_chunk=True) | {"usage": usage(done, num_prompt_tokens)})
    except (MtadError, EngineFaultError, TimeoutError) as error:
        yield _event(described(error, request_id)[1])
    yield "data: [DONE]\n\n"


class TooLongError(MtadError):
    """More tokens were asked for than there is room for."""


def described(error: Exception, request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body for what can end a request."""
    if isinstance(error, OwnTimeoutError):
        message = (
            f"the request took longer than its own timeout of {error.args[0]:g} s; raise it, or ask for fewer tokens"
        )
        return 408, error_body(message, "timeout_error", param="timeout", request_id=request_id)
    if isinstance(error, TimeoutError):
        message = "the request took longer than the server allows; ask for fewer tokens"
        return 504, error_body(message, "timeout_error", request_id=request_id)
    if isinstance(error, EngineFaultError):
        return 500, error_body(str(error), "server_error", request_id=request_id)
    code = _TOO_LONG if isinstance(error, TooLongError | CapacityError) else None
    param = "max_tokens" if isinstance(error, TooLongError) else None
    return 400, error_body(str(error), "invalid_request_error", param=param, code=code, request_id=request_id)


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
