"""The web application: endpoints, and errors in one sentence."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware

from mtad.config import ServerOptions
from mtad.errors import MtadError
from mtad.server.answers import described
from mtad.server.gate import BodyLimit
from mtad.server.middleware import Gate, RequestScope
from mtad.server.notes import note_of
from mtad.server.page import add_page
from mtad.server.replies import error_body
from mtad.server.service import Service
from mtad.server.worker import EngineFaultError

__all__ = ["Service", "create_app"]

_NOT_JSON = "the body is not JSON; send a JSON object as UTF-8"
_INVALID = "invalid_request_error"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}


def create_app(service: Service, server: ServerOptions) -> FastAPI:
    """The application over a service; the engine's thread lives as long as it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(title="mtad", description="Multi-token joint decoding, OpenAI-compatible.", lifespan=lifespan)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", service.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", service.models, methods=["GET"])
    app.add_api_route("/tokenize", service.tokenize, methods=["POST"])
    app.add_api_route("/detokenize", service.detokenize, methods=["POST"])
    _add_operation(app, service)
    add_page(app, service.form)
    _add_errors(app)
    _add_middleware(app, service, server)
    return app


def _add_middleware(app: FastAPI, service: Service, server: ServerOptions) -> None:
    """The last one is the outermost."""
    app.add_middleware(BodyLimit, max_bytes=server.max_body_bytes, patience=server.body_timeout)
    app.add_middleware(Gate, keys=service.keys, rate=service.rate, rejected=service.metrics.rejected)
    if server.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.cors_origin,
            allow_methods=("GET", "POST"),
            allow_headers=("authorization", "content-type", "x-request-id"),
            expose_headers=("x-request-id", "retry-after"),
        )
    app.add_middleware(RequestScope, replies=service.metrics.replies, log=service.log)


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Requests are taken."""
        if service.is_draining:
            raise HTTPException(503, "the server is shutting down; send requests to another one")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    def reply(request: Request, status: int, message: str, kind: str, param: str | None = None) -> Response:
        body = error_body(message, kind, param=param, request_id=note_of(request.scope).request_id)
        return JSONResponse(body, status)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return reply(request, 400, _NOT_JSON, _INVALID)
        content_type = request.headers.get("content-type", "")
        if not _is_json(content_type):
            message = (
                f"got a body of type {content_type or 'unknown'}, expected the header content-type: application/json"
            )
            return reply(request, 400, message, _INVALID)
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return reply(request, 400, f"{place}: {first['msg']}; see /docs for what is supported", _INVALID, place)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        # FastAPI's own words for a body that is not UTF-8 say neither what was expected nor what to do.
        message = _NOT_JSON if error.status_code == 400 else str(error.detail)
        found = reply(request, error.status_code, message, _KINDS.get(error.status_code, _INVALID))
        found.headers.update(error.headers or {})
        return found

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return reply(request, 500, "the server failed on this request; its log says why", "server_error")

    async def ended(request: Request, error: Exception) -> Response:
        status, document = described(error, note_of(request.scope).request_id)
        return JSONResponse(document, status)

    for kind in (MtadError, EngineFaultError, TimeoutError):
        app.add_exception_handler(kind, ended)


def _is_json(content_type: str) -> bool:
    kind = content_type.split(";", maxsplit=1)[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
