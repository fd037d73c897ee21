"""Load on a running server: so many streams at a time, or so many requests a second."""

import json
import queue
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from threading import Lock, Thread
from typing import Any

from mtad.bench.server_client import ServerClient, TimedReply
from mtad.bench.workloads import build_text

_MOST_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One way to ask.

    Attributes:
        streams: Requests that are open at all times; None for an open loop.
        rate: Requests a second, with exponential gaps between them (a Poisson process); None for a closed loop.
        num_requests: How many there are in all.
        prompt_tokens: As in `SpeedWorkload`.
        new_tokens: Tokens of every answer.
        temperature: Of the sampling.
    """

    streams: int | None
    rate: float | None
    num_requests: int
    prompt_tokens: int
    new_tokens: int
    temperature: float

    @property
    def label(self) -> str:
        """The load in a few words."""
        if self.rate is not None:
            return f"{self.rate:g} a second"
        return f"{self.streams} stream{'' if self.streams == 1 else 's'}"


def request_bodies(client: ServerClient, load: Load, fields: dict[str, Any], first: int) -> list[dict[str, Any]]:
    """Chats of a load, no two with the same prompt and seed.

    Args:
        client: Counts tokens where prompts have a length.
        load: How many and how long.
        fields: Further fields of every request.
        first: Number of the first prompt and seed.
    """

    def count(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        number: int = json.loads(client.ask("/tokenize", {"messages": messages}))["count"]
        return number

    return [
        {
            "messages": [{"role": "user", "content": build_text(count, load.prompt_tokens, number)}],
            "max_tokens": load.new_tokens,
            "ignore_eos": True,
            "temperature": load.temperature,
            "seed": number,
        }
        | fields
        for number in range(first, first + load.num_requests)
    ]


def run_load(
    client: ServerClient, load: Load, bodies: Sequence[dict[str, Any]], note: Callable[[], object]
) -> dict[str, Any]:
    """Ask for all of them; a sample of a record.

    Args:
        client: The server.
        load: Closed or open loop.
        bodies: What to ask for.
        note: Called after each reply, one at a time.
    """
    before, lock = client.counters(), Lock()
    replies: list[TimedReply | None] = [None] * len(bodies)
    due: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def work() -> None:
        while (index := due.get()) is not None:
            reply = client.stream(bodies[index])
            with lock:
                replies[index] = reply
                note()

    # Daemons, so that an interrupt does not wait for answers.
    workers = [Thread(target=work, daemon=True) for _ in range(load.streams or min(len(bodies), _MOST_AT_ONCE))]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for index, at in enumerate(arrivals(load)):
        time.sleep(max(started + at - time.perf_counter(), 0.0))
        due.put(index)
    for _ in workers:
        due.put(None)
    for worker in workers:
        worker.join()
    wall_s = time.perf_counter() - started
    after = client.counters()
    names = ("mtad_steps_total", "mtad_step_rows_total", "mtad_step_seconds_total")
    return {
        "load": asdict(load) | {"label": load.label},
        "wall_s": wall_s,
        "server": {name: after[name] - before[name] for name in names if name in before and name in after},
        "replies": [asdict(reply) for reply in replies if reply is not None],
    }


def arrivals(load: Load) -> list[float]:
    """Seconds from the start at which requests are sent; all at once where streams bound them."""
    if load.rate is None:
        return [0.0] * load.num_requests
    draws, at, found = random.Random(load.num_requests), 0.0, []
    for _ in range(load.num_requests):
        found.append(at)
        at += draws.expovariate(load.rate)
    return found
