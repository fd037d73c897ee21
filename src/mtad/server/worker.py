"""The engine's own thread: requests in, pieces out, a fresh session after a failure."""

import asyncio
import logging
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from mtad.api import BatchSession, Engine
from mtad.config import GenerationOptions, SessionOptions
from mtad.errors import MtadError
from mtad.server.fair_queue import FairQueue
from mtad.structures import Piece

_log = logging.getLogger("mtad.server")


class EngineFaultError(Exception):
    """The engine failed while a request was running; it is not the request's fault."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job can be carried out.

    Attributes:
        max_tokens: The longest answer there is room for, or that was asked for.
    """

    max_tokens: int


Item = Accepted | Piece | Exception


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """One answer that is asked for.

    Attributes:
        index: Place of the answer among the choices of its request.
        client: Whose turn it takes.
        prompt: Token ids.
        options: How to decode.
        explains: Whether every piece says what was drafted.
        loop: Where the outbox lives.
        outbox: Gets the job with `Accepted` and each piece, or with the error that ended it. A request has at most one
            piece per token, so a slow reader holds no more than its own answer.
        submitted: Reading of `monotonic`.
    """

    index: int
    client: str
    prompt: Sequence[int]
    options: GenerationOptions
    explains: bool
    loop: asyncio.AbstractEventLoop
    outbox: "asyncio.Queue[tuple[Job, Item]]"
    submitted: float = field(default_factory=monotonic)

    def put(self, item: Item) -> None:
        """Hand something to the reader, from any thread; a loop that has ended reads nothing more."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, (self, item))


@dataclass(frozen=True, slots=True)
class _Cancel:
    job: Job


@dataclass(slots=True)
class WorkerCounts:
    """What the engine's thread has done; read by others at any time.

    Attributes:
        num_failures: Sessions that have failed.
        num_steps: Steps that brought tokens.
        num_step_rows: Answers that got tokens in them, added up.
        busy_s: Seconds of all steps.
        num_started: Answers that were given to the session.
        waited_s: Seconds that they had waited, added up.
    """

    num_failures: int = 0
    num_steps: int = 0
    num_step_rows: int = 0
    busy_s: float = 0.0
    num_started: int = 0
    waited_s: float = 0.0


class EngineWorker:
    """Owns a session in a thread of its own; clients take turns for its rows.

    A step that fails ends its session: the requests in it get `EngineFaultError`, those that wait outside go on in the
    next one.

    Args:
        engine: Nobody else decodes with it until `stop`.
        options: Size of the sessions.

    Attributes:
        counts: What was done so far.
        max_rows: Answers that run at a time.
    """

    def __init__(self, engine: Engine, options: SessionOptions) -> None:
        self.counts = WorkerCounts()
        self.max_rows = options.max_rows
        self._engine = engine
        self._options = options
        self._inbox: queue.SimpleQueue[Job | _Cancel | None] = queue.SimpleQueue()
        self._waiting: FairQueue[Job] = FairQueue()
        self._checked: Job | None = None
        self._by_ticket: dict[int, Job] = {}
        self._session: BatchSession | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mtad-engine")

    @property
    def num_waiting(self) -> int:
        """Answers without a row."""
        session = self._session
        return len(self._waiting) + (0 if session is None else session.num_waiting)

    @property
    def num_running(self) -> int:
        """Answers that have a row."""
        session = self._session
        return 0 if session is None else session.num_running

    @property
    def cached_tokens(self) -> int:
        """Tokens that running answers hold in the caches."""
        session = self._session
        return 0 if session is None else session.cached_tokens

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the caches have room for; 0 before the first session."""
        session = self._session
        return 0 if session is None else session.capacity_tokens

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
        command = None if self._waiting else self._inbox.get()
        if command is None and not self._waiting:
            return
        size = self._options
        with self._engine.session(size.max_rows, size.max_tokens, size.prefill_chunk) as session:
            self._session = session
            if command is not None:
                self._carry_out(command, session)
            while self._take_commands(session):
                self._fill(session)
                self._step(session)

    def _take_commands(self, session: BatchSession) -> bool:
        """Carry out what has come, waiting for something where there is nothing to do; whether to go on."""
        while not (self._waiting or self._by_ticket) or not self._inbox.empty():
            command = self._inbox.get()
            if command is None:
                return False
            self._carry_out(command, session)
        return True

    def _carry_out(self, command: Job | _Cancel, session: BatchSession) -> None:
        if isinstance(command, Job):
            self._check(command, session)
        elif not self._waiting.remove(command.job.client, command.job):
            for ticket, job in self._by_ticket.items():
                if job is command.job:
                    session.cancel(ticket)

    def _check(self, job: Job, session: BatchSession) -> None:
        """Let a job wait for a row, or refuse it at once."""
        self._checked = job
        try:
            max_tokens = session.check(job.prompt, job.options)
        except MtadError as error:
            job.put(error)
        else:
            job.put(Accepted(max_tokens))
            self._waiting.add(job.client, job)
        self._checked = None

    def _fill(self, session: BatchSession) -> None:
        """Give free rows to those whose turn it is."""
        while self._waiting and len(self._by_ticket) < self.max_rows:
            self._checked = job = self._waiting.take()
            try:
                ticket = session.submit(job.prompt, job.options, explain=job.explains)
            except MtadError as error:
                job.put(error)
            else:
                self._by_ticket[ticket] = job
                self.counts.num_started += 1
                self.counts.waited_s += monotonic() - job.submitted
            self._checked = None

    def _step(self, session: BatchSession) -> None:
        if not self._by_ticket:
            return
        started = monotonic()
        pieces = session.step()
        self.counts.busy_s += monotonic() - started
        rows = {piece.row for piece in pieces if piece.token_ids}
        self.counts.num_steps += bool(rows)
        self.counts.num_step_rows += len(rows)
        for piece in pieces:
            job = self._by_ticket[piece.row]
            if piece.finish_reason is not None:
                del self._by_ticket[piece.row]
            job.put(piece)

    def _ended(self, future: "Future[None]") -> None:
        """Fail what ran and begin anew, unless the thread was told to end."""
        self._session = None
        error = future.exception()
        if error is None:
            return
        self.counts.num_failures += 1
        _log.error("the engine failed; a new session begins", exc_info=error)
        failed = [*self._by_ticket.values(), *([] if self._checked is None else [self._checked])]
        # With nobody inside, those outside would make the next session fail as well.
        failed = failed or self._waiting.clear()
        self._by_ticket, self._checked = {}, None
        for job in failed:
            job.put(EngineFaultError("the engine failed while this request ran; send it again"))
        with suppress(RuntimeError):  # stopped meanwhile
            self.start()
