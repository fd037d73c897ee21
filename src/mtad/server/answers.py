"""The answers of one request: jobs for the engine, and what comes back from it."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

from mtad.config import GenerationOptions
from mtad.errors import MtadError
from mtad.server.metrics import ServerMetrics
from mtad.server.replies import Style, error_body, usage
from mtad.server.worker import EngineFaultError, EngineWorker, Job
from mtad.structures import GenerationResult, Piece


class Answers:
    """Runs the jobs of one request; leaving it cancels those that have not ended.

    Args:
        worker: The engine's thread.
        metrics: Counts.
        prompts: Token ids of every choice.
        options: How to decode every choice.
        explains: Whether pieces say what was drafted.
        timeout: Seconds until the whole request is given up.
    """

    def __init__(
        self,
        worker: EngineWorker,
        metrics: ServerMetrics,
        prompts: Sequence[Sequence[int]],
        options: Sequence[GenerationOptions],
        *,
        explains: bool,
        timeout: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[tuple[Job, Piece | Exception]] = asyncio.Queue()
        self._worker, self._metrics, self._timeout = worker, metrics, timeout
        self.num_prompt_tokens = 0
        self._open = [
            Job(index=index, prompt=prompt, options=item, explains=explains, loop=loop, outbox=self._outbox)
            for index, (prompt, item) in enumerate(zip(prompts, options, strict=True))
        ]
        self._clocks = {job: metrics.clock() for job in self._open}
        self.results: list[GenerationResult | None] = [None] * len(self._open)

    def __enter__(self) -> Self:
        self._metrics.open_answers.inc(len(self._open))
        for job in self._open:
            self._worker.submit(job)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._open:
            self._worker.cancel(job)
        self._metrics.open_answers.dec(len(self.results))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces of all choices as they come, with the choice's index.

        Raises:
            MtadError: The request cannot be carried out.
            EngineFaultError: The engine failed.
            TimeoutError: The time is over.
        """
        async with asyncio.timeout(self._timeout):
            while self._open:
                job, item = await self._outbox.get()
                if isinstance(item, Exception):
                    self._open.remove(job)
                    raise item
                self._clocks[job].note(item)
                if item.result is not None:
                    self._open.remove(job)
                    self.results[job.index] = item.result
                yield job.index, item

    async def finished(self) -> list[GenerationResult]:
        """All results, once every choice has ended; raises what `pieces` does."""
        async for _ in self.pieces():
            pass
        return [result for result in self.results if result is not None]


async def event_stream(answers: Answers, style: Style, *, has_usage: bool) -> AsyncGenerator[str, None]:
    """Server-sent events of a streamed reply; a failure on the way is its last event but one.

    Args:
        answers: Entered here, so that a client who leaves cancels them.
        style: Of the chunks.
        has_usage: Whether the last chunk counts tokens.
    """
    with answers:
        try:
            if style.kind == "chat":
                for index in range(len(answers.results)):
                    yield _event(style.opening(index))
            async for index, piece in answers.pieces():
                yield _event(style.chunk(index, piece))
            if has_usage:
                done = [result for result in answers.results if result is not None]
                yield _event(style.frame([], is_chunk=True) | {"usage": usage(done, answers.num_prompt_tokens)})
        except (MtadError, EngineFaultError, TimeoutError) as error:
            yield _event(described(error)[1])
        yield "data: [DONE]\n\n"


def described(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for what can end a request."""
    if isinstance(error, TimeoutError):
        return 504, error_body("the request took longer than the server allows; ask for fewer tokens", "timeout_error")
    if isinstance(error, EngineFaultError):
        return 500, error_body(str(error), "server_error")
    return 400, error_body(str(error), "invalid_request_error")


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
