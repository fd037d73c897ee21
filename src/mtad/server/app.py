"""The web application: endpoints, and errors in one sentence."""

import asyncio
import copy
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from mtad.api import Engine
from mtad.api.contenders import Contender
from mtad.api.prompts import Prompt, PromptFormat, encode_prompt
from mtad.config import GenerationOptions, ServerOptions, SessionOptions, replace_settings
from mtad.errors import ConfigError, MtadError, PromptError
from mtad.server.answers import Answers, described, event_stream
from mtad.server.gate import BodyLimit, name_of_key
from mtad.server.metrics import ReplyCounter, ServerMetrics
from mtad.server.replies import Style, error_body
from mtad.server.wire import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from mtad.server.worker import EngineFaultError, EngineWorker

_RETRY_SECONDS = "2"
_NOT_JSON = "the body is not JSON; send a JSON object as UTF-8"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}


class Service:
    """Everything behind the endpoints.

    Args:
        engine: Decodes; nobody else does so while the application runs.
        defaults: Settings where requests are silent.
        session: Size of the batch.
        server: Limits.
        keys: API keys by name; none lets everybody in.

    Attributes:
        num_open: Answers that run or wait.
        is_draining: Whether new requests are turned away.
    """

    def __init__(
        self,
        engine: Engine,
        defaults: GenerationOptions,
        session: SessionOptions,
        server: ServerOptions,
        keys: Mapping[str, str],
    ) -> None:
        self.worker = EngineWorker(engine, session)
        self.metrics = ServerMetrics(self.worker)
        self.is_draining = False
        self.num_open = 0
        self._engine, self._defaults, self._server, self._keys = engine, defaults, server, dict(keys)
        # The engine's thread decodes with its own; a tokenizer is not to be used by two threads.
        self._tokenizer = copy.deepcopy(engine.tokenizer)
        self._created = int(time.time())
        self.model = engine.models.options.target

    def check_key(self, request: Request) -> None:
        """Raise 401 unless the request has one of the keys, or none is asked for."""
        if self._keys and name_of_key(self._keys, request.headers.get("authorization")) is None:
            raise HTTPException(401, "no valid API key was given; send one as Authorization: Bearer KEY")

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """`/v1/chat/completions`."""
        if body.top_logprobs is not None and not body.logprobs:
            raise ConfigError("top_logprobs needs logprobs, got false; set logprobs to true")
        prompts: list[Prompt] = [[message.plain() for message in body.messages]]
        return await self._reply(body, prompts, "chat", body.logprobs, request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._reply(body, list(body.prompts()), "text", body.logprobs is not None, request)

    async def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """`/tokenize`."""
        if (body.prompt is None) == (body.messages is None):
            raise PromptError("expected either prompt or messages; give one of them")
        prompt: Prompt = body.prompt if body.messages is None else [item.plain() for item in body.messages]  # type: ignore[assignment]
        tokens = encode_prompt(self._tokenizer, prompt, _format("text" if body.messages is None else "chat"))
        return {"tokens": tokens, "count": len(tokens)}

    async def detokenize(self, body: DetokenizeRequest) -> dict[str, str]:
        """`/detokenize`."""
        size = len(self._tokenizer)
        if any(token >= size for token in body.tokens):
            raise PromptError(f"got a token id of {max(body.tokens)}, expected ids below {size}; check the model")
        return {"prompt": self._text(body.tokens)}

    async def models(self) -> dict[str, Any]:
        """`/v1/models`."""
        model = {"id": self.model, "object": "model", "created": self._created, "owned_by": "mtad"}
        return {"object": "list", "data": [model]}

    async def _reply(
        self,
        body: ChatRequest | CompletionRequest,
        prompts: list[Prompt],
        kind: Any,
        has_log_probs: bool,
        http: Request,
    ) -> Response:
        self._check_model(body.model)
        if body.explain and not body.stream:
            raise ConfigError("explain needs a stream, got stream false; set stream to true")
        changes = body.settings()
        if self._defaults.guard == "auto":
            # A seed of our own is no promise that the text can be repeated.
            changes["guard"] = "off" if "seed" in changes else "on"
        seed = changes.setdefault("seed", secrets.randbelow(1 << 31))
        options = replace_settings(self._defaults, changes, "request")
        choices = [replace_settings(options, {"seed": seed + index}, "request") for index in range(body.n)]
        token_ids = [encode_prompt(self._tokenizer, prompt, _format(kind)) for prompt in prompts]
        self._admit(len(token_ids) * body.n)
        answers = Answers(
            self.worker,
            self.metrics,
            [ids for ids in token_ids for _ in choices],
            choices * len(token_ids),
            explains=body.explain,
            timeout=self._server.request_timeout,
        )
        answers.num_prompt_tokens = sum(map(len, token_ids))
        style = Style(
            kind=kind,
            reply_id=f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=self.model,
            has_log_probs=has_log_probs,
            has_provenance=body.provenance,
            token_text=lambda token: self._text([token]),
        )
        if body.stream:
            has_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._counted(event_stream(answers, style, has_usage=has_usage), len(answers.results))
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        return await self._whole(answers, style, options, http)

    async def _whole(self, answers: Answers, style: Style, options: GenerationOptions, http: Request) -> Response:
        """The finished reply; a client who leaves meanwhile ends its answers."""
        self.num_open += len(answers.results)
        try:
            with answers:
                work = asyncio.ensure_future(answers.finished())
                gone = asyncio.ensure_future(http.receive())
                try:
                    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        return Response(status_code=499)
                    document = style.whole(work.result(), answers.num_prompt_tokens)
                finally:
                    gone.cancel()
                    work.cancel()
        finally:
            self.num_open -= len(answers.results)
        return JSONResponse(document | {"mtad": {"is_lossless": Contender("", options).is_lossless}})

    async def _counted(self, events: AsyncGenerator[str, None], num_answers: int) -> AsyncIterator[str]:
        self.num_open += num_answers
        try:
            async for event in events:
                yield event
        finally:
            self.num_open -= num_answers
            await events.aclose()

    def _admit(self, num_answers: int) -> None:
        """Raise 503 while draining, 400 for too many answers at once, 429 where too many are open."""
        if self.is_draining:
            raise HTTPException(503, "the server is shutting down; send the request to another one")
        if num_answers > self._server.max_choices:
            raise ConfigError(
                f"got {num_answers} answers in one request, expected at most {self._server.max_choices}; lower n"
            )
        if self.num_open + num_answers > self._server.max_open:
            raise HTTPException(
                429, f"{self.num_open} answers run or wait already; try again later", {"retry-after": _RETRY_SECONDS}
            )

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.model:
            raise HTTPException(404, f"there is no model {name!r} here; use {self.model!r}")

    def _text(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


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


def _format(kind: str) -> PromptFormat:
    return PromptFormat(is_chat=kind == "chat")
