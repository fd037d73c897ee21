"""The web application: endpoints, and errors in one sentence."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from mtad.config import ServerOptions
from mtad.errors import MtadError
from mtad.server.answers import described
from mtad.server.gate import BodyLimit
from mtad.server.metrics import ReplyCounter
from mtad.server.replies import error_body
from mtad.server.service import Service
from mtad.server.worker import EngineFaultError

__all__ = ["Service", "create_app"]

_NOT_JSON = "the body is not JSON; send a JSON object as UTF-8"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}


def create_app(service: Service, server: ServerOptions) -> FastAPI:
    """The application over a service; the engine's thread lives as long as it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(title="mtad", description="Multi-token joint decoding, OpenAI-compatible.", lifespan=lifespan)
    guarded = APIRouter(dependencies=[Depends(service.check_key)])
    guarded.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], response_model=None)
    guarded.add_api_route("/v1/completions", service.complete, methods=["POST"], response_model=None)
    guarded.add_api_route("/v1/models", service.models, methods=["GET"])
    guarded.add_api_route("/tokenize", service.tokenize, methods=["POST"])
    guarded.add_api_route("/detokenize", service.detokenize, methods=["POST"])
    app.include_router(guarded)
    _add_operation(app, service)
    _add_errors(app)
    app.add_middleware(BodyLimit, max_bytes=server.max_body_bytes)
    app.add_middleware(ReplyCounter, replies=service.metrics.replies)
    return app


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
    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse(error_body(_NOT_JSON, "invalid_request_error"), 400)
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        message = f"{place}: {first['msg']}; see /docs for what is supported"
        return JSONResponse(error_body(message, "invalid_request_error", param=place), 400)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> Response:
        kind = _KINDS.get(error.status_code, "invalid_request_error")
        # FastAPI's own words for a body that is not UTF-8 say neither what was expected nor what to do.
        message = _NOT_JSON if error.status_code == 400 else str(error.detail)
        return JSONResponse(error_body(message, kind), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body("the server failed on this request; its log says why", "server_error"), 500)

    async def ended(_: Request, error: Exception) -> Response:
        status, document = described(error)
        return JSONResponse(document, status)

    for kind in (MtadError, EngineFaultError, TimeoutError):
        app.add_exception_handler(kind, ended)
