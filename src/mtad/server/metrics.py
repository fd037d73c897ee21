"""What Prometheus reads."""

from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mtad.server.worker import EngineWorker
from mtad.structures import GenerationResult, Piece

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REJECTIONS = ("key", "request_rate", "token_rate", "open_answers", "choices", "draining")


class ServerMetrics:
    """Counters, gauges and histograms of one server.

    Args:
        worker: Asked for its rows, caches and counts whenever the metrics are read.

    Attributes:
        registry: What `/metrics` shows.
        replies: By path and status.
        rejected: Requests that were turned away, by reason.
        open_answers: Answers that run or wait.
    """

    def __init__(self, worker: EngineWorker) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.replies = Counter("mtad_replies", "Replies.", ("path", "status"), registry=registry)
        self.rejected = Counter("mtad_rejected_requests", "Requests turned away.", ("reason",), registry=registry)
        self.open_answers = Gauge("mtad_open_answers", "Answers that run or wait.", registry=registry)
        self._tokens = Counter("mtad_tokens", "Tokens of answers.", ("provenance",), registry=registry)
        self._prompt_tokens = Counter("mtad_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._reused = Counter("mtad_reused_prompt_tokens", "Tokens of prompts read from a cache.", registry=registry)
        self._calls = Counter("mtad_target_calls", "Calls of the target, counted by answer.", registry=registry)
        self._drafted = Counter(
            "mtad_drafted_levels",
            "Iterations of ended answers that could keep so many levels.",
            ("depth",),
            registry=registry,
        )
        self._kept = Counter(
            "mtad_kept_levels", "Iterations of ended answers that kept so many levels.", ("depth",), registry=registry
        )
        self._first = Histogram(
            "mtad_time_to_first_token_seconds", "From the request.", buckets=_SECONDS, registry=registry
        )
        self._piece_gap = Histogram("mtad_inter_piece_seconds", "Between pieces.", buckets=_SECONDS, registry=registry)
        self._token_gap = Histogram(
            "mtad_inter_token_seconds",
            "Between tokens: the gap before a piece, shared by its tokens.",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._ended = Counter("mtad_answers", "Answers that have ended.", ("reason",), registry=registry)
        for provenance in ("drafted", "target"):
            self._tokens.labels(provenance)
        for reason in REJECTIONS:
            self.rejected.labels(reason)
        self._watch_worker(worker)

    def watch(self, name: str, text: str, read: Callable[[], float], *, is_counter: bool = True) -> None:
        """Show a number that somebody else keeps; for example joules, where they are measured.

        Args:
            name: Of the metric, without `_total`.
            text: Its help.
            read: Called whenever the metrics are read.
            is_counter: False for what can go down.
        """
        self.registry.register(_Reading(name, text, read, is_counter))

    def clock(self) -> "AnswerClock":
        """Times one answer from now."""
        return AnswerClock(self)

    def note_result(self, result: GenerationResult) -> None:
        """Count a finished answer."""
        stats = result.stats
        self._prompt_tokens.inc(stats.num_prompt_tokens)
        self._reused.inc(stats.num_reused_prompt_tokens)
        self._count_depths(result.accepted_lengths, len(stats.acceptance_by_depth))

    def note_end(self, reason: str) -> None:
        """Count the end of an answer."""
        self._ended.labels(reason).inc()

    def note_piece(self, piece: Piece, seconds: float, *, is_first: bool) -> None:
        """Count the tokens of one iteration and the time since the one before."""
        for source in piece.provenance:
            self._tokens.labels(source).inc()
        self._calls.inc()
        if is_first:
            self._first.observe(seconds)
            return
        self._piece_gap.observe(seconds)
        for _ in piece.token_ids:
            self._token_gap.observe(seconds / len(piece.token_ids))

    def _count_depths(self, accepted_lengths: Sequence[int], num_depths: int) -> None:
        for depth in range(1, num_depths + 1):
            self._drafted.labels(str(depth)).inc(len(accepted_lengths))
            self._kept.labels(str(depth)).inc(sum(length >= depth for length in accepted_lengths))

    def _watch_worker(self, worker: EngineWorker) -> None:
        counts = worker.counts
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "mtad_waiting_answers": ("Answers without a row.", lambda: worker.num_waiting),
            "mtad_running_rows": ("Answers that have a row.", lambda: worker.num_running),
            "mtad_rows": ("Rows of the batch.", lambda: worker.max_rows),
            "mtad_cached_tokens": ("Tokens of running answers in the caches.", lambda: worker.cached_tokens),
            "mtad_cache_room_tokens": ("Tokens that all rows could hold.", lambda: worker.capacity_tokens),
        }
        counters: dict[str, tuple[str, Callable[[], float]]] = {
            "mtad_engine_failures": ("Sessions that have failed.", lambda: counts.num_failures),
            "mtad_steps": ("Steps of the batch that brought tokens.", lambda: counts.num_steps),
            "mtad_step_rows": ("Answers that got tokens in a step, added up.", lambda: counts.num_step_rows),
            "mtad_step_seconds": ("Seconds of all steps.", lambda: counts.busy_s),
            "mtad_started_answers": ("Answers that were given a row.", lambda: counts.num_started),
            "mtad_queue_seconds": ("Seconds that they had waited.", lambda: counts.waited_s),
        }
        for is_counter, readings in ((False, gauges), (True, counters)):
            for name, (text, read) in readings.items():
                self.watch(name, text, read, is_counter=is_counter)


class AnswerClock:
    """Times the pieces of one answer."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._last = monotonic()
        self._is_first = True

    def note(self, piece: Piece) -> None:
        """A piece has come."""
        if piece.token_ids:
            now = monotonic()
            self._metrics.note_piece(piece, now - self._last, is_first=self._is_first)
            self._last, self._is_first = now, False
        if piece.result is not None:
            self._metrics.note_result(piece.result)


class _Reading(Collector):
    """One number, read when it is shown."""

    def __init__(self, name: str, text: str, read: Callable[[], float], is_counter: bool) -> None:
        self._name, self._text, self._read = name, text, read
        self._family = CounterMetricFamily if is_counter else GaugeMetricFamily

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        yield self._family(self._name, self._text, value=self._read())

    def describe(self) -> Iterator[Metric]:
        """The name alone, so that registering asks nobody."""
        yield self._family(self._name, self._text)
