"""The engine's own thread: requests in, pieces out, a fresh session after a failure."""

import asyncio
import logging
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from mtad.api import BatchSession, Engine
from mtad.config import GenerationOptions, SessionOptions
from mtad.errors import MtadError
from mtad.structures import Piece

_log = logging.getLogger("mtad.server")


class EngineFaultError(Exception):
    """The engine failed while a request was running; it is not the request's fault."""


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """One answer that is asked for.

    Attributes:
        index: Place of the answer among the choices of its request.
        prompt: Token ids.
        options: How to decode.
        explains: Whether every piece says what was drafted.
        loop: Where the outbox lives.
        outbox: Gets the job with each piece, or with the error that ended it. A request has at most one piece per
            token, so a slow reader holds no more than its own answer.
    """

    index: int
    prompt: Sequence[int]
    options: GenerationOptions
    explains: bool
    loop: asyncio.AbstractEventLoop
    outbox: "asyncio.Queue[tuple[Job, Piece | Exception]]"

    def put(self, item: Piece | Exception) -> None:
        """Hand something to the reader, from any thread; a loop that has ended reads nothing more."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, (self, item))


@dataclass(frozen=True, slots=True)
class _Cancel:
    job: Job


class EngineWorker:
    """Owns a session in a thread of its own.

    A step that fails ends its session: the requests in it get `EngineFaultError`, those that wait outside go on in the
    next one.

    Args:
        engine: Nobody else decodes with it until `stop`.
        options: Size of the sessions.

    Attributes:
        num_failures: Sessions that have failed.
    """

    def __init__(self, engine: Engine, options: SessionOptions) -> None:
        self.num_failures = 0
        self._engine = engine
        self._options = options
        self._inbox: queue.SimpleQueue[Job | _Cancel | None] = queue.SimpleQueue()
        self._open: set[Job] = set()
        self._by_ticket: dict[int, Job] = {}
        self._session: BatchSession | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mtad-engine")

    @property
    def num_running(self) -> int:
        """Answers that have a row."""
        return 0 if self._session is None else self._session.num_running

    @property
    def cached_tokens(self) -> int:
        """Tokens that running answers hold in the caches."""
        return 0 if self._session is None else self._session.cached_tokens

    def start(self) -> None:
        """Begin to take jobs."""
        self._executor.submit(self._serve).add_done_callback(self._ended)

    def submit(self, job: Job) -> None:
        """Queue a job; never waits."""
        self._inbox.put(job)

    def cancel(self, job: Job) -> None:
        """End a job within one iteration; a job that has ended stays as it is."""
        self._inbox.put(_Cancel(job))

    def stop(self) -> None:
        """End the thread after the iteration at hand; jobs that run get no more pieces."""
        self._inbox.put(None)
        self._executor.shutdown(wait=True)

    def _serve(self) -> None:
        """One session, from the first job until `stop` or a failure."""
        command = self._inbox.get()
        if command is None:
            return
        size = self._options
        with self._engine.session(size.max_rows, size.max_tokens, size.prefill_chunk) as session:
            self._session = session
            while command is not None:
                self._carry_out(command, session)
                while self._inbox.empty() and (session.num_waiting or session.num_running):
                    for piece in session.step():
                        self._deliver(piece)
                command = self._inbox.get()

    def _carry_out(self, command: Job | _Cancel, session: BatchSession) -> None:
        if isinstance(command, _Cancel):
            for ticket, job in self._by_ticket.items():
                if job is command.job:
                    session.cancel(ticket)
            return
        self._open.add(command)
        try:
            ticket = session.submit(command.prompt, command.options, explain=command.explains)
        except MtadError as error:
            self._open.discard(command)
            command.put(error)
        else:
            self._by_ticket[ticket] = command

    def _deliver(self, piece: Piece) -> None:
        job = self._by_ticket[piece.row]
        if piece.finish_reason is not None:
            del self._by_ticket[piece.row]
            self._open.discard(job)
        job.put(piece)

    def _ended(self, future: "Future[None]") -> None:
        """Fail what ran and begin anew, unless the thread was told to end."""
        self._session = None
        error = future.exception()
        if error is None:
            return
        self.num_failures += 1
        _log.error("the engine failed; a new session begins", exc_info=error)
        failed, self._open, self._by_ticket = self._open, set(), {}
        for job in failed:
            job.put(EngineFaultError("the engine failed while this request ran; send it again"))
        with suppress(RuntimeError):  # stopped meanwhile
            self.start()
