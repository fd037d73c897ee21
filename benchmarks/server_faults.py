"""What a server does when its clients, its disk and its own process misbehave.

    python benchmarks/server_faults.py --record benchmarks/records/server_faults.json

Starts servers of its own on this machine's loopback, with a tiny pair made on the fly unless --target names one, and
ends them. Prints a table and, as the last line, JSON; the status is 1 where something was not as expected.
"""

import argparse
import json
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from served_process import ServedProcess, chat, wait_until

from mtad.bench.server_client import ServerClient, TimedReply
from mtad.cli.tables import format_table
from mtad.results.files import write_json
from mtad.results.provenance import describe_run

HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-le"
BODY_TIMEOUT = 3.0
LOG_BYTES = 20_000
PATIENCE = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A line of the table; memory in MB, of the server's process."""

    fault: str
    expected: str
    got: str
    is_as_expected: bool
    memory_before: float
    memory_after: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What faults need.

    Attributes:
        server: Running.
        start: Starts another one; takes further words, a limit for files and a port.
        num_tiny: Requests of the fault with many tiny ones.
    """

    server: ServedProcess
    start: Callable[..., ServedProcess]
    num_tiny: int

    @property
    def client(self) -> ServerClient:
        """Of the running server."""
        return ServerClient(self.server.url)


Found = tuple[str, str, bool]
"""Expected, got, and whether the two agree."""


def rows_are_free(server: ServedProcess, seconds: float = 10.0) -> bool:
    """Whether nothing runs or waits any more."""
    client = ServerClient(server.url)
    names = ("mtad_running_rows", "mtad_open_answers", "mtad_waiting_answers")
    return wait_until(lambda: not any(client.counters().get(name, 1) for name in names), seconds)


def in_parallel(client: ServerClient, bodies: list[dict[str, Any]]) -> list[TimedReply]:
    """All at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(client.stream, bodies))


def whole(replies: list[TimedReply]) -> str:
    """How many answers came whole."""
    return f"{sum(reply.error is None for reply in replies)} of {len(replies)} answers whole"


def open_stream(server: ServedProcess, body: dict[str, Any], buffer: int | None = None) -> socket.socket:
    """A connection with a request on it whose reply nobody has read."""
    line = socket.socket()
    line.settimeout(PATIENCE)
    if buffer is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    line.connect(server.address)
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    line.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return line


def client_gone(scene: Scene) -> Found:
    """Twenty clients close their connection in the middle of a stream."""
    for _ in range(20):
        with open_stream(scene.server, chat(400, stream=True)) as line:
            line.recv(100)
    is_free = rows_are_free(scene.server)
    return "all rows free within 10 s", "all rows free" if is_free else "rows are held", is_free


def slow_reader(scene: Scene) -> Found:
    """A client reads nothing for two seconds while another one asks."""
    with open_stream(scene.server, chat(200, stream=True, provenance=True), buffer=2048) as line:
        started = time.monotonic()
        other = scene.client.stream(chat(16))
        waited = time.monotonic() - started
        time.sleep(2)
        text = b"".join(iter(lambda: line.recv(65536), b""))
    is_whole = b"[DONE]" in text and other.error is None
    got = f"other answered: {other.error is None}, own stream whole: {b'[DONE]' in text}"
    return "the other is answered, the slow one gets all", got, is_whole and waited < PATIENCE


def half_open(scene: Scene) -> Found:
    """Two hundred connections send half a request's head and nothing more."""
    lines = [socket.create_connection(scene.server.address, timeout=PATIENCE) for _ in range(200)]
    for line in lines:
        line.sendall(HALF_A_HEAD)
    reply = scene.client.stream(chat(16))
    started = time.monotonic()
    num_closed = sum(line.recv(10) == b"" for line in lines)
    seconds = time.monotonic() - started
    for line in lines:
        line.close()
    is_right = num_closed == 200 and reply.error is None and seconds < 2 * BODY_TIMEOUT + 2
    got = f"answered: {reply.error is None}, {num_closed} closed"
    return f"others are answered, all 200 closed after {BODY_TIMEOUT:g} s", got, is_right


def tiny_requests(scene: Scene) -> Found:
    """Very many requests for one token each."""
    body = {"prompt": "a", "max_tokens": 1, "ignore_eos": True}

    def some(count: int) -> int:
        return sum('"length"' in scene.client.ask("/v1/completions", body) for _ in range(count))

    share = scene.num_tiny // 8
    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(some, [share] * 8))
    return f"{8 * share} answers", f"{total} answers", total == 8 * share


def many_streams(scene: Scene) -> Found:
    """Two hundred streams begin at once."""
    replies = in_parallel(scene.client, [chat(24, seed=seed) for seed in range(200)])
    is_right = all(reply.error is None and reply.num_tokens == 24 for reply in replies)
    return "200 of 200 answers whole", whole(replies), is_right


def bad_bodies(scene: Scene) -> Found:
    """Bodies that are not JSON, not UTF-8, of wrong types, too long, and a prompt longer than a row."""
    messages = [{"role": "user", "content": "a " * 5000}]
    bodies: dict[str, tuple[bytes, int]] = {
        "malformed": (b'{"messages": [', 400),
        "invalid UTF-8": (b'{"messages": "\xff\xfe"}', 400),
        "wrong types": (json.dumps(chat(4) | {"temperature": [], "n": "two"}).encode(), 400),
        "NaN": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400),
        "deep": (b"[" * 100_000, 400),
        "long prompt": (json.dumps(chat(4) | {"messages": messages}).encode(), 400),
        "50 MB": (b" " * 50_000_000, 413),
    }
    got = {name: scene.server.status_of(body) for name, (body, _) in bodies.items()}
    expected = {name: status for name, (_, status) in bodies.items()}
    # A body that is refused before it was sent whole may break the connection: 0.
    is_right = all(got[name] == status or (status == 413 and got[name] == 0) for name, status in expected.items())
    return _listed(expected), _listed(got), is_right and scene.client.stream(chat(4)).error is None


def _listed(statuses: dict[str, int]) -> str:
    return ", ".join(f"{name} {status}" for name, status in statuses.items())


def full_disk(scene: Scene) -> Found:
    """The log's file can grow no further."""
    with scene.start("--log-format", "json", limit=LOG_BYTES) as server:
        client = ServerClient(server.url)
        replies = in_parallel(client, [chat(4, seed=seed) for seed in range(100)])
        wait_until(lambda: client.counters().get("mtad_lost_log_lines_total", 0) > 0, 10)
        lost = client.counters()["mtad_lost_log_lines_total"]
        num_warnings = server.said().count("the log cannot be written")
    is_right = all(reply.error is None for reply in replies) and lost > 0 and num_warnings == 1
    expected = "100 of 100 answers whole, lines lost, one warning"
    return expected, f"{whole(replies)}, {lost:.0f} lines lost, {num_warnings} warning(s)", is_right


def terminated(scene: Scene) -> Found:
    """SIGTERM while twenty streams run."""
    with scene.start("--drain-timeout", "120") as server, ThreadPoolExecutor(20) as pool:
        client = ServerClient(server.url)
        running = [pool.submit(client.stream, chat(200, seed=seed)) for seed in range(20)]
        wait_until(lambda: client.counters().get("mtad_open_answers") == 20, 30)
        server.terminate()
        wait_until(lambda: not server.is_ready(), 10)
        late = client.stream(chat(4))
        replies = [future.result() for future in running]
        status = server.wait(PATIENCE)
    is_right = all(reply.error is None for reply in replies) and late.status in (0, 503) and status == 0
    expected = "20 of 20 answers whole, a new one refused, status 0"
    return expected, f"{whole(replies)}, new: {late.status or 'no connection'}, status {status}", is_right


def killed(scene: Scene) -> Found:
    """SIGKILL while twenty streams run, and another server on the same port."""
    with scene.start() as server, ThreadPoolExecutor(20) as pool:
        client, port = ServerClient(server.url), server.address[1]
        running = [pool.submit(client.stream, chat(600, seed=seed)) for seed in range(20)]
        wait_until(lambda: client.counters().get("mtad_open_answers") == 20, 30)
        server.kill()
        killed_at = time.monotonic()
        replies = [future.result() for future in running]
        seconds = time.monotonic() - killed_at
    with scene.start(port=port) as again:
        reply = ServerClient(again.url).stream(chat(16))
        is_clean = rows_are_free(again)
    num_errors = sum(reply.error is not None for reply in replies)
    is_right = num_errors == 20 and seconds < 5 and reply.error is None and is_clean
    expected = "20 connection errors within 5 s, the next server answers"
    return expected, f"{num_errors} errors in {seconds:.1f} s, next answers: {reply.error is None}", is_right


FAULTS: dict[str, Callable[[Scene], Found]] = {
    "20 clients gone mid-stream": client_gone,
    "slow reader": slow_reader,
    "200 half-open sockets": half_open,
    "many tiny requests": tiny_requests,
    "200 streams at once": many_streams,
    "bad bodies": bad_bodies,
    "disk full for the log": full_disk,
    "SIGTERM under load": terminated,
    "SIGKILL under load": killed,
}


def run_faults(scene: Scene) -> list[Outcome]:
    """All of them, one after the other."""
    scene.client.stream(chat(16))
    found = []
    for name, fault in FAULTS.items():
        before = scene.server.memory_mb()
        expected, got, is_right = fault(scene)
        is_right = is_right and rows_are_free(scene.server)
        outcome = Outcome(
            fault=name,
            expected=expected,
            got=got,
            is_as_expected=is_right,
            memory_before=before,
            memory_after=scene.server.memory_mb(),
        )
        print(f"{name}: {'ok' if is_right else 'NOT AS EXPECTED'}", file=sys.stderr, flush=True)
        found.append(outcome)
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Faults that a server has to stand.")
    parser.add_argument("--target", help="model to serve (default: a tiny one made on the fly)")
    parser.add_argument("--draft")
    parser.add_argument("--tiny-requests", type=int, default=10_000)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as folder:
        words = models(options, Path(folder))
        words += ["--body-timeout", f"{BODY_TIMEOUT:g}", "--max-tokens", "1024", "--max-rows", "16"]

        def start(*more: str, limit: int | None = None, port: int = 0) -> ServedProcess:
            log = Path(folder) / "serve.log"
            log.unlink(missing_ok=True)
            return ServedProcess([*words, "--log-file", str(log), *more, "--port", str(port)], Path(folder), limit)

        with start() as server:
            outcomes = run_faults(Scene(server, start, options.tiny_requests))
    target = options.target or "tiny pair"
    document = {"kind": "server_faults", "schema": 1, "run": describe_run(), "target": target}
    document |= {"rows": [asdict(item) for item in outcomes]}
    if options.record is not None:
        write_json(options.record, document)
    rows = [
        [item.fault, item.expected, item.got, f"{item.memory_before:.0f}", f"{item.memory_after:.0f}"]
        for item in outcomes
    ]
    print(format_table(("fault", "expected", "got", "MB before", "MB after"), rows))
    print(json.dumps({"num_faults": len(outcomes), "as_expected": sum(item.is_as_expected for item in outcomes)}))
    return int(not all(item.is_as_expected for item in outcomes))


def models(options: argparse.Namespace, folder: Path) -> list[str]:
    """The flags that name the models."""
    if options.target is not None:
        return ["--target", options.target, *([] if options.draft is None else ["--draft", options.draft])]
    from tiny_pair import save_tiny_pair

    target, draft = save_tiny_pair(folder)
    return ["--target", str(target), "--draft", str(draft)]


if __name__ == "__main__":
    sys.exit(main())
