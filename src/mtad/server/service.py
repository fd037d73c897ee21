"""What the endpoints do."""

import asyncio
import copy
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mtad.api import Engine
from mtad.api.contenders import Contender
from mtad.api.prompts import Prompt, PromptFormat, encode_prompt
from mtad.config import GenerationOptions, ServerOptions, SessionOptions, replace_settings
from mtad.errors import ConfigError, PromptError
from mtad.server.answers import Answers, event_stream
from mtad.server.gate import name_of_key
from mtad.server.metrics import ServerMetrics
from mtad.server.replies import Style
from mtad.server.wire import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from mtad.server.worker import EngineWorker

_RETRY_SECONDS = "2"


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
        changes.setdefault("seed", secrets.randbelow(1 << 31))
        options = replace_settings(self._defaults, changes, "request")
        choices = [replace_settings(options, {"seed": options.seed + index}, "request") for index in range(body.n)]
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


def _format(kind: str) -> PromptFormat:
    return PromptFormat(is_chat=kind == "chat")
