"""`mtad serve` in a process of its own, for programs that treat it badly."""

import http.client
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

START_SECONDS = 180.0


def chat(max_tokens: int, **fields: Any) -> dict[str, Any]:
    """The body of a chat whose answer has so many tokens."""
    messages = [{"role": "user", "content": "why is the sky blue?"}]
    return {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True, "seed": 0} | fields


def wait_until(holds: Callable[[], Any], seconds: float) -> bool:
    """Whether something holds within some seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)


class ServedProcess:
    """A server on the loopback; leaving it kills the process if it still runs.

    Args:
        words: Flags of `mtad serve`.
        folder: Where it runs.
        limit: Most bytes of a file that it writes.
    """

    def __init__(self, words: Sequence[str], folder: Path, limit: int | None) -> None:
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mtad", "serve", "--host", "127.0.0.1", *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if limit is not None:
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        is_up = wait_until(lambda: "serving" in self.said() or self._process.poll() is not None, START_SECONDS)
        found = re.search(r"on http://([\d.]+):(\d+)", self.said())
        if not is_up or found is None:
            self.kill()
            raise SystemExit(f"the server did not start: {self.said()}")
        self.address = found[1], int(found[2])
        self.url = f"http://{found[1]}:{found[2]}"
        wait_until(self.is_ready, START_SECONDS)

    def said(self) -> str:
        """What came on standard error so far."""
        return "".join(self._lines)

    def memory_mb(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1000 if found else float("nan")

    def status_of(self, body: bytes) -> int:
        """Status of the reply to a body; 0 where the connection broke."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int | None:
        """Its status; None where it still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self.kill()
        self._reader.join(5)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def is_ready(self) -> bool:
        """Whether it takes requests."""
        connection = http.client.HTTPConnection(*self.address, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self._lines.extend(iter(self._process.stderr.readline, ""))
