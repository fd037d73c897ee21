"""What Prometheus reads."""

from collections.abc import Sequence
from secrets import token_hex
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtad.server.worker import EngineWorker
from mtad.structures import GenerationResult, Piece

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServerMetrics:
    """Counters, gauges and histograms of one server.

    Args:
        worker: Asked for its rows and caches whenever the metrics are read.

    Attributes:
        registry: What `/metrics` shows.
        open_answers: Answers that run or wait.
    """

    def __init__(self, worker: EngineWorker) -> None:
        self.registry = registry = CollectorRegistry()
        self.replies = Counter("mtad_replies", "Replies.", ("path", "status"), registry=registry)
        self.open_answers = Gauge("mtad_open_answers", "Answers that run or wait.", registry=registry)
        self._tokens = Counter("mtad_tokens", "Tokens of answers.", ("provenance",), registry=registry)
        self._prompt_tokens = Counter("mtad_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._reused = Counter("mtad_reused_prompt_tokens", "Tokens of prompts read from a cache.", registry=registry)
        self._calls = Counter("mtad_target_calls", "Calls of the target, counted by answer.", registry=registry)
        self._kept = Counter("mtad_kept_drafts", "Iterations that kept so many levels.", ("depth",), registry=registry)
        self._first = Histogram(
            "mtad_time_to_first_token_seconds", "From the request.", buckets=_SECONDS, registry=registry
        )
        self._gap = Histogram("mtad_inter_piece_seconds", "Between pieces.", buckets=_SECONDS, registry=registry)
        self._ended = Counter("mtad_answers", "Answers that have ended.", ("reason",), registry=registry)
        for name, text, read in (
            ("mtad_running_rows", "Answers that have a row.", lambda: worker.num_running),
            ("mtad_cached_tokens", "Tokens in the caches.", lambda: worker.cached_tokens),
            ("mtad_engine_failures", "Sessions that have failed.", lambda: worker.num_failures),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def clock(self) -> "AnswerClock":
        """Times one answer from now."""
        return AnswerClock(self)

    def note_result(self, result: GenerationResult) -> None:
        """Count a finished answer."""
        stats = result.stats
        self._prompt_tokens.inc(stats.num_prompt_tokens)
        self._reused.inc(stats.num_reused_prompt_tokens)
        self._calls.inc(stats.target_calls)
        self._ended.labels(result.finish_reason).inc()
        self._count_depths(result.accepted_lengths)

    def note_piece(self, piece: Piece, seconds: float, *, is_first: bool) -> None:
        """Count the tokens of one iteration and the time since the one before."""
        for source in piece.provenance:
            self._tokens.labels(source).inc()
        (self._first if is_first else self._gap).observe(seconds)

    def _count_depths(self, accepted_lengths: Sequence[int]) -> None:
        for length in accepted_lengths:
            for depth in range(1, length + 1):
                self._kept.labels(str(depth)).inc()


class AnswerClock:
    """Times the pieces of one answer."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._last = monotonic()
        self._is_first = True

    def note(self, piece: Piece) -> None:
        """A piece has come."""
        now = monotonic()
        self._metrics.note_piece(piece, now - self._last, is_first=self._is_first)
        self._last, self._is_first = now, False
        if piece.result is not None:
            self._metrics.note_result(piece.result)


class ReplyCounter:
    """Counts replies by route and gives each an `x-request-id`.

    Args:
        app: What answers.
        replies: Labelled with path and status.
    """

    def __init__(self, app: ASGIApp, replies: Counter) -> None:
        self._app, self._replies = app, replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self._replies.labels(path, str(message["status"])).inc()
                MutableHeaders(scope=message)["x-request-id"] = token_hex(8)
            await send(message)

        await self._app(scope, receive, counted)
