"""One request to a running server, and when its tokens came; the standard library alone."""

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from mtad.errors import ConfigError

_PATIENCE_S = 900.0


@dataclass(slots=True, kw_only=True)
class TimedReply:
    """What became of one streamed request; seconds are counted from its start.

    Attributes:
        status: Of HTTP; 0 where the connection broke.
        error: What went wrong; None where the answer is whole.
        first_s: Until the first token.
        total_s: Until the end.
        gaps: Seconds before each later piece, and its tokens.
        num_tokens: Tokens of the answer.
        target_calls: Iterations.
        num_prompt_tokens: Tokens of the prompt.
        num_reused: Those whose keys the server had cached.
    """

    status: int = 0
    error: str | None = "the connection broke"
    first_s: float | None = None
    total_s: float = 0.0
    gaps: list[tuple[float, int]] = field(default_factory=list)
    num_tokens: int = 0
    target_calls: int = 0
    num_prompt_tokens: int = 0
    num_reused: int = 0


class ServerClient:
    """Talks to one server.

    Args:
        url: Such as http://127.0.0.1:8000; a path behind it is a prefix of all others.
        key: API key; None sends none.

    Raises:
        ConfigError: It is no such address.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"server must be an address such as http://127.0.0.1:8000, got {url!r}")
        self._parts = parts
        self._headers = {"content-type": "application/json"}
        self._headers |= {} if key is None else {"authorization": f"Bearer {key}"}

    def ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        """The text of a reply to GET, or to POST where there is a body.

        Raises:
            ConfigError: The server does not answer, or refuses.
        """
        connection = self._connect()
        try:
            response = self._send(connection, path, body)
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"the server at {self._parts.netloc} does not answer {path} ({error or type(error).__name__}); "
                "start one with mtad serve, or name its address"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise ConfigError(f"the server answered {path} with status {response.status}: {_message(text)}")
        return text

    def stream(self, body: dict[str, Any]) -> TimedReply:
        """Ask for a streamed chat and note when its tokens come; never raises for what the server or network does."""
        reply = TimedReply()
        connection = self._connect()
        started = last = perf_counter()
        try:
            response = self._send(connection, "/v1/chat/completions", body | _STREAMED)
            reply.status = response.status
            if response.status != 200:
                reply.error = _message(response.read().decode(errors="replace"))
                return reply
            for event in _events(response):
                now = perf_counter()
                if count := _note(event, reply):
                    if reply.first_s is None:
                        reply.first_s = now - started
                    else:
                        reply.gaps.append((now - last, count))
                    last = now
        except (OSError, ValueError, http.client.HTTPException) as error:
            reply.error = f"{type(error).__name__}: {error}"
        finally:
            reply.total_s = perf_counter() - started
            connection.close()
        return reply

    def counters(self) -> dict[str, float]:
        """The numbers of `/metrics` that have no labels; empty where there are none to be had."""
        try:
            text = self.ask("/metrics")
        except ConfigError:
            return {}
        return {name: float(value) for name, value in re.findall(r"^(\w+) ([-+.\w]+)$", text, flags=re.MULTILINE)}

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=_PATIENCE_S)

    def _send(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if data is None else "POST", self._parts.path.rstrip("/") + path, data, self._headers)
        return connection.getresponse()


_STREAMED = {"stream": True, "provenance": True, "stream_options": {"include_usage": True}}


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream; one that ends without [DONE] raises ValueError."""
    for line in response:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    raise ValueError("the stream ended early")


def _note(event: dict[str, Any], reply: TimedReply) -> int:
    """Keep what an event says; returns its number of tokens."""
    if "error" in event:
        reply.error = str(event["error"].get("message"))
        return 0
    if usage := event.get("usage"):
        reply.num_prompt_tokens = usage["prompt_tokens"]
    count = 0
    for choice in event.get("choices", ()):
        extra = choice.get("mtad") or {}
        count += len(extra.get("token_ids", ()))
        if choice.get("finish_reason") is not None:
            reply.error = None
            statistics = extra.get("statistics", {})
            reply.target_calls = statistics.get("target_calls", 0)
            reply.num_reused = statistics.get("num_reused_prompt_tokens", 0)
    reply.num_tokens += count
    return count


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
