"""The playground at `/`: files out of the package, and the facts that its form is made of."""

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

from mtad.api.contenders import Contender
from mtad.config import METHOD_NAMES, GenerationOptions, SessionOptions, setting_fields

_DIALS = (
    "method",
    "drafter",
    "verifier",
    "threshold",
    "gamma",
    "beam_width",
    "temperature",
    "top_k",
    "top_p",
    "max_new_tokens",
    "seed",
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page as it is sent.

    Attributes:
        body: Its bytes.
        media_type: Its content type.
    """

    body: bytes
    media_type: str

    def reply(self, request: Request) -> Response:
        """The file, or 304 where the browser has it already."""
        tag = f'"{sha256(self.body).hexdigest()[:32]}"'
        headers = _HEADERS | {"etag": tag}
        known = [item.strip().removeprefix("W/") for item in request.headers.get("if-none-match", "").split(",")]
        if tag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def read_assets() -> dict[str, Asset]:
    """The page's files by name, out of the package."""
    folder = resources.files("mtad.server") / "playground"
    found = [item for item in folder.iterdir() if item.is_file()]
    return {item.name: Asset(item.read_bytes(), _TYPES["." + item.name.rsplit(".")[-1]]) for item in found}


def form_facts(defaults: GenerationOptions, session: SessionOptions, *, needs_key: bool) -> dict[str, Any]:
    """What the form is made of: dials with help texts and bounds, and methods; nothing that needs a key.

    Args:
        defaults: Resolved settings where requests are silent.
        session: Size of the batch.
        needs_key: Whether requests must have an API key.
    """
    names = ("help", "minimum", "maximum", "above", "choices")
    described = {item.name: item for item in setting_fields(defaults)}
    return {
        "needs_key": needs_key,
        "max_tokens": session.max_tokens,
        "methods": [{"name": name, "is_lossless": lossless} for name, lossless in _methods()],
        "dials": {
            name: {key: getattr(described[name], key) for key in names} | {"default": getattr(defaults, name)}
            for name in _DIALS
        },
    }


def add_page(app: FastAPI, facts: dict[str, Any]) -> None:
    """Serve the playground at `/` and its files under `/playground/`.

    Args:
        app: Gets the routes.
        facts: Of `form_facts`.
    """
    assets = read_assets() | {"form.json": Asset(json.dumps(facts).encode(), _TYPES[".json"])}
    index = assets.pop("index.html")

    async def page(request: Request) -> Response:
        return index.reply(request)

    async def asset(name: str, request: Request) -> Response:
        if name not in assets:
            raise HTTPException(404, f"the playground has no file {name!r}; open / instead")
        return assets[name].reply(request)

    for path, endpoint in (("/", page), ("/playground/{name}", asset)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


def _methods() -> list[tuple[str, bool]]:
    """The methods that a session can decode with, and whether each keeps the target's law."""
    rules = [(name, Contender("", GenerationOptions(method=name)).is_lossless) for name in METHOD_NAMES]
    return [(name, lossless) for name, lossless in rules if lossless is not None]
