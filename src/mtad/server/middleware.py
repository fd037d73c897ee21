"""What stands around the endpoints: ids, the log, keys and rates."""

import math
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtad.server.gate import name_of_key
from mtad.server.notes import new_note, note_of
from mtad.server.rate_limits import RateLimit
from mtad.server.replies import error_body
from mtad.server.server_log import ServerLog

GUARDED = ("/v1/", "/tokenize", "/detokenize")
"""Beginnings of the paths that ask for a key and count as requests."""
_QUIET = ("/health", "/ready", "/metrics")
"""Paths that are asked every few seconds; only their failures are logged."""


class RequestScope:
    """Outermost: gives every request its id and note, counts the reply and logs it.

    Args:
        app: What answers.
        replies: Labelled with path and status.
        log: None logs nothing.
    """

    def __init__(self, app: ASGIApp, replies: Counter, log: ServerLog | None) -> None:
        self._app, self._replies, self._log = app, replies, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = new_note(scope, Headers(scope=scope).get("x-request-id"))

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                self._replies.labels(_path_label(scope), str(note.status)).inc()
                MutableHeaders(scope=message)["x-request-id"] = note.request_id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            if self._log is not None and not (note.path in _QUIET and note.status == 200):
                self._log.request(note)


class Gate:
    """Asks guarded paths for a key, and counts their requests against the client's rate.

    Args:
        app: What is guarded.
        keys: API keys by name; none lets everybody in.
        rate: Requests a minute.
        rejected: Labelled with the reason.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, str], rate: RateLimit, rejected: Counter) -> None:
        self._app, self._keys, self._rate, self._rejected = app, keys, rate, rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        note = note_of(scope)
        if self._keys:
            note.key = name_of_key(self._keys, Headers(scope=scope).get("authorization"))
            if note.key is None:
                self._rejected.labels("key").inc()
                message = "no valid API key was given; send one as Authorization: Bearer KEY"
                return _refused(401, message, "authentication_error", note.request_id, {"www-authenticate": "Bearer"})
        seconds = self._rate.wait(note.client, 1)
        if seconds:
            self._rejected.labels("request_rate").inc()
            message = f"too many requests in a minute; try again in {retry_after(seconds)} seconds"
            headers = {"retry-after": retry_after(seconds)}
            return _refused(429, message, "rate_limit_error", note.request_id, headers)
        self._rate.take(note.client, 1)
        return None


def retry_after(seconds: float) -> str:
    """The header's value: whole seconds, rounded up."""
    return str(max(math.ceil(seconds), 1))


def _refused(status: int, message: str, kind: str, request_id: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse(error_body(message, kind, request_id=request_id), status, headers)


def _path_label(scope: Scope) -> str:
    """The route, so that made-up paths do not become labels."""
    found: str | None = getattr(scope.get("route"), "path", None)
    if found is None and scope["path"] in ("/v1/chat/completions", "/v1/completions", "/v1/models"):
        found = scope["path"]
    return found or "other"
