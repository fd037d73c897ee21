"""What the endpoints do."""

import asyncio
import copy
import random
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response

from mtad.api import Engine
from mtad.api.contenders import Contender
from mtad.api.prompts import Prompt, PromptFormat, encode_prompt
from mtad.config import GenerationOptions, ServerOptions, SessionOptions, replace_settings
from mtad.errors import ConfigError, PromptError
from mtad.server.answers import Answers, EventResponse, Patience, TooLongError, event_stream
from mtad.server.metrics import ServerMetrics
from mtad.server.middleware import retry_after
from mtad.server.notes import RequestNote, note_of
from mtad.server.open_answers import OpenAnswers
from mtad.server.page import form_facts
from mtad.server.rate_limits import RateLimit
from mtad.server.replies import Style
from mtad.server.server_log import ServerLog
from mtad.server.wire import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from mtad.server.worker import EngineWorker

_RETRY_SECONDS = 2


class Service:
    """Everything behind the endpoints.

    Args:
        engine: Decodes; nobody else does so while the application runs.
        defaults: Settings where requests are silent.
        session: Size of the batch.
        server: Limits.
        keys: API keys by name; none lets everybody in.
        log: Where requests are noted; None notes nothing.

    Attributes:
        open: Answers that run or wait.
        is_draining: Whether new requests are turned away.
        model: The target's name.
        form: What the playground's form is made of.
    """

    def __init__(
        self,
        engine: Engine,
        defaults: GenerationOptions,
        session: SessionOptions,
        server: ServerOptions,
        keys: Mapping[str, str],
        log: ServerLog | None = None,
    ) -> None:
        self.worker = EngineWorker(engine, session)
        self.metrics = ServerMetrics(self.worker)
        self.log, self.keys = log, dict(keys)
        self.open = OpenAnswers(server.max_open)
        self.rate, self._token_rate = RateLimit(server.rate_limit), RateLimit(server.token_rate_limit)
        self.is_draining = False
        self._engine, self._defaults, self._server = engine, defaults, server
        # The engine's thread decodes with its own; a tokenizer is not to be used by two threads.
        self._tokenizer = copy.deepcopy(engine.tokenizer)
        self._seeds = secrets.SystemRandom() if defaults.seed is None else random.Random(defaults.seed)
        self._free_compile = engine.resolve(replace(defaults, seed=None)).compile
        self._created = int(time.time())
        self.model = engine.models.options.target
        self.form = form_facts(engine.resolve(defaults), session, needs_key=bool(keys))
        if log is not None:
            self.metrics.watch("mtad_lost_log_lines", "Lines of the log that were not written.", lambda: log.num_lost)

    @property
    def num_open(self) -> int:
        """Answers that run or wait."""
        return self.open.total

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
        # A seed of our own is no promise that the text can be repeated.
        is_promised = self._defaults.seed is not None or "seed" in changes
        if self._defaults.guard == "auto":
            changes["guard"] = "off" if is_promised else "on"
        if self._defaults.compile == "auto":
            changes["compile"] = "off" if is_promised else self._free_compile
        changes.setdefault("seed", self._seeds.randrange(1 << 31))
        options = replace_settings(self._defaults, changes, "request")
        token_ids = [encode_prompt(self._tokenizer, prompt, _format(kind)) for prompt in prompts]
        note = note_of(http.scope)
        note.num_prompt_tokens = sum(map(len, token_ids))
        note.prompts = prompts if self._server.log_prompts else None
        self._admit(note, len(token_ids) * body.n)
        style = self._style(kind, body, options, has_log_probs)
        with ExitStack() as stack:
            answers = self._answers(body, token_ids, options, note)
            stack.enter_context(self.open.hold(note.client, len(answers.results)))
            stack.callback(lambda: self._token_rate.take(note.client, note.num_tokens))
            stack.enter_context(answers)
            room = await answers.accepted()
            _check_room(body.asked_tokens, room, max(map(len, token_ids)))
            if not body.stream:
                return await self._whole(answers, style, http)
            close = stack.pop_all().close
        events = event_stream(
            answers,
            style,
            has_usage=body.stream_options is not None and body.stream_options.include_usage,
            num_prompt_tokens=note.num_prompt_tokens,
            request_id=note.request_id,
        )
        return EventResponse(events, answers, close)

    def _answers(
        self,
        body: ChatRequest | CompletionRequest,
        token_ids: list[list[int]],
        options: GenerationOptions,
        note: RequestNote,
    ) -> Answers:
        """One job for each prompt and choice."""
        assert options.seed is not None
        seed = options.seed
        choices = [replace_settings(options, {"seed": seed + index}, "request") for index in range(body.n)]
        return Answers(
            self.worker,
            self.metrics,
            note,
            [ids for ids in token_ids for _ in choices],
            choices * len(token_ids),
            explains=body.explain,
            patience=self._patience(body.timeout),
        )

    def _patience(self, asked: float | None) -> Patience:
        longest = self._server.request_timeout
        return Patience(longest, False) if asked is None or asked >= longest else Patience(asked, True)

    def _style(
        self,
        kind: Any,
        body: ChatRequest | CompletionRequest,
        options: GenerationOptions,
        has_log_probs: bool,
    ) -> Style:
        return Style(
            kind=kind,
            reply_id=f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=self.model,
            has_log_probs=has_log_probs,
            has_provenance=body.provenance,
            is_lossless=Contender("", options).is_lossless,
            token_text=lambda token: self._text([token]),
        )

    async def _whole(self, answers: Answers, style: Style, http: Request) -> Response:
        """The finished reply; a client who leaves meanwhile ends its answers."""
        work = asyncio.ensure_future(answers.finished())
        gone = asyncio.ensure_future(http.receive())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            document = style.whole(work.result(), note_of(http.scope).num_prompt_tokens)
        finally:
            gone.cancel()
            work.cancel()
        return JSONResponse(document | {"mtad": {"is_lossless": style.is_lossless}})

    def _admit(self, note: RequestNote, num_answers: int) -> None:
        """Raise 503 while draining, 400 for too many answers at once, 429 where too much is asked for.

        The prompt's tokens are taken from the client's minute here, the answers' once they are known.
        """
        if self.is_draining:
            raise self._rejection("draining", 503, "the server is shutting down; send the request to another one")
        if num_answers > self._server.max_choices:
            self.metrics.rejected.labels("choices").inc()
            raise ConfigError(
                f"got {num_answers} answers in one request, expected at most {self._server.max_choices}; lower n"
            )
        if not self.open.has_room(note.client, num_answers):
            message = f"{self.num_open} answers run or wait already; try again later"
            raise self._rejection("open_answers", 429, message, _RETRY_SECONDS)
        seconds = self._token_rate.wait(note.client, note.num_prompt_tokens)
        if seconds:
            message = f"too many tokens in a minute; try again in {retry_after(seconds)} seconds"
            raise self._rejection("token_rate", 429, message, seconds)
        self._token_rate.take(note.client, note.num_prompt_tokens)

    def _rejection(self, reason: str, status: int, message: str, seconds: float | None = None) -> HTTPException:
        self.metrics.rejected.labels(reason).inc()
        return HTTPException(status, message, None if seconds is None else {"retry-after": retry_after(seconds)})

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.model:
            raise HTTPException(404, f"there is no model {name!r} here; use {self.model!r}")

    def _text(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _format(kind: str) -> PromptFormat:
    return PromptFormat(is_chat=kind == "chat")


def _check_room(asked: int | None, room: int, num_prompt_tokens: int) -> None:
    """Refuse an answer that was asked for and cannot be had; one of the default length may be cut."""
    if asked is not None and asked > room:
        raise TooLongError(
            f"got max_tokens {asked} behind a prompt of {num_prompt_tokens} tokens, but there is room for {room}; "
            "lower max_tokens or shorten the prompt"
        )
