"""Requests that come to a session at set times."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtad.api.session import BatchSession
from mtad.config import GenerationOptions
from mtad.structures import GenerationResult, Piece


@dataclass(frozen=True, slots=True)
class Pattern:
    """How requests come.

    Attributes:
        load: Share of the time that the first contender needs for them.
        bursts: Requests that come at once, in batches; 0 means one by one.
    """

    load: float
    bursts: int


PATTERNS = {
    "steady": Pattern(load=0.7, bursts=0),
    "bursty": Pattern(load=0.7, bursts=2),
    "idle": Pattern(load=0.1, bursts=0),
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Seconds from the beginning at which requests come, and how long the whole takes at least."""

    times: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a schedule came to.

    Attributes:
        seconds: From the beginning until the schedule and the last answer had ended.
        busy_s: Seconds spent in the session's steps.
        num_iterations: Those steps.
        latencies_s: From a request's time until its answer was whole, in the order in which they ended.
        results: The answers.
    """

    seconds: float
    busy_s: float
    num_iterations: int
    latencies_s: tuple[float, ...]
    results: tuple[GenerationResult, ...]


def plan_arrivals(pattern: Pattern, batch_size: int, service_s: float, window_s: float) -> Schedule:
    """The times of a pattern.

    Args:
        pattern: How requests come.
        batch_size: Rows of the session.
        service_s: Seconds that the first contender needs for so many requests at once.
        window_s: Seconds that the schedule takes at least.
    """
    group = pattern.bursts * batch_size or 1
    period_s = group * service_s / batch_size / pattern.load
    count = math.ceil(window_s / period_s)
    return Schedule(
        tuple(turn * period_s for turn in range(count) for _ in range(group)), seconds=max(count * period_s, window_s)
    )


def serve(
    session: BatchSession,
    prompts: Sequence[list[int]],
    options: GenerationOptions,
    schedule: Schedule,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Served:
    """Submit every prompt at its time and decode until all have answers and the schedule has ended.

    Args:
        session: Has no requests.
        prompts: Token ids, as many as the schedule has times.
        options: Settings of all.
        schedule: When they come.
        clock: Seconds by a monotonic clock.
        sleep: Waits.
    """
    started = clock()
    coming = deque(zip(schedule.times, prompts, strict=True))
    due: dict[int, float] = {}
    latencies: list[float] = []
    results: list[GenerationResult] = []
    busy_s, num_iterations = 0.0, 0
    while coming or len(results) < len(prompts):
        now = clock() - started
        while coming and coming[0][0] <= now:
            at_s, prompt = coming.popleft()
            due[session.submit(prompt, options)] = at_s
        if len(due) == len(results):
            sleep(max(coming[0][0] - now, 0.0))
            continue
        ended = _step(session)
        after = clock() - started
        busy_s, num_iterations = busy_s + after - now, num_iterations + 1
        for piece in ended:
            assert piece.result is not None
            latencies.append(after - due[piece.row])
            results.append(piece.result)
    sleep(max(schedule.seconds - (clock() - started), 0.0))
    return Served(
        seconds=clock() - started,
        busy_s=busy_s,
        num_iterations=num_iterations,
        latencies_s=tuple(latencies),
        results=tuple(results),
    )


def warm_up(session: BatchSession, prompts: Sequence[list[int]], options: GenerationOptions) -> None:
    """Decode a little with 1, 2, 4, ... rows, so that what is captured for each is there before anything is measured.

    Args:
        session: Has no requests, and has none afterwards.
        prompts: One for each row of the session.
        options: Settings of all.
    """
    num_pieces: dict[int, int] = {}
    while len(num_pieces) < len(prompts):
        joining = prompts[len(num_pieces) : max(2 * len(num_pieces), 1)]
        num_pieces |= {session.submit(prompt, options): 0 for prompt in joining}
        # The first iteration of a shape runs as it is, the second one is captured, the third one replayed.
        while session.num_running + session.num_waiting and min(num_pieces.values()) < 3:
            for piece in session.step():
                num_pieces[piece.row] += 1 if piece.result is None else 3
    for ticket in num_pieces:
        session.cancel(ticket)
    while session.num_waiting or session.num_running:
        session.step()
    session.step()


def _step(session: BatchSession) -> list[Piece]:
    """One step; the last pieces of answers that have ended."""
    return [piece for piece in session.step() if piece.result is not None]
