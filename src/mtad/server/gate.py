"""Who and what is let in: keys, and bodies of bounded length that come in bounded time."""

import asyncio
import hmac
from collections.abc import Mapping
from pathlib import Path

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtad.errors import ConfigError


def read_keys(path: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """API keys by name, from a file of `NAME KEY` lines, or from `MTAD_API_KEYS` as `NAME:KEY,...`.

    Returns:
        Keys by name; none lets everybody in.

    Raises:
        ConfigError: The file cannot be read, or a line is not a name and a key.
    """
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"key file {path} cannot be read ({error}); name a file of NAME KEY lines") from error
        pairs = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    else:
        pairs = [pair.split(":", 1) for pair in environment.get("MTAD_API_KEYS", "").split(",") if pair]
    wrong = [number for number, pair in enumerate(pairs, 1) if len(pair) != 2 or not all(pair)]
    if wrong:
        raise ConfigError(f"API key {wrong[0]} is not a name and a key; write NAME KEY lines, or NAME:KEY with commas")
    return {name: key for name, key in pairs}  # noqa: C416  (dict() would hide that pairs are lists)


def name_of_key(keys: Mapping[str, str], header: str | None) -> str | None:
    """The name of the key in an Authorization header, in time that does not depend on the keys; None for no key."""
    given = (header or "").removeprefix("Bearer ").encode()
    found = [name for name, key in keys.items() if hmac.compare_digest(key.encode(), given)]
    return found[0] if found else None


class BodyLimit:
    """Refuses request bodies that are too long, before they are read whole, and those that do not come.

    Args:
        app: What to guard.
        max_bytes: Longest body.
        patience: Seconds for a whole body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, patience: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        num_bytes = int(announced) if announced.isdecimal() else 0
        deadline = asyncio.get_running_loop().time() + self._patience
        is_whole = False

        async def counted() -> Message:
            nonlocal num_bytes, is_whole
            if num_bytes > self._max_bytes:
                raise self._refusal(num_bytes)
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {self._patience:g} s; send it again") from None
            is_whole = not message.get("more_body", False)
            if not announced:
                num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._refusal(num_bytes)
            return message

        await self._app(scope, counted, send)

    def _refusal(self, num_bytes: int) -> HTTPException:
        return HTTPException(
            413, f"the body has {num_bytes} bytes or more, expected at most {self._max_bytes}; send a shorter one"
        )
