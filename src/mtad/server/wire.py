"""What requests look like: OpenAI's fields, ours beside them, and nothing else."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_TokenId = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    """Unknown fields are refused, never ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """What a stream says beside the text."""

    include_usage: bool = False


class TextPart(_Strict):
    """A part of a message; there are no others than text."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class JsonSchema(_Strict):
    """A schema that the answer keeps to."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """Free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_text(self) -> str | None:
        """The schema as text; None for free text."""
        if self.type == "text":
            return None
        return json.dumps({"type": "object"} if self.json_schema is None else self.json_schema.schema_)


class _Request(_Strict):
    """Fields of chats and completions alike; None leaves a setting as the server was started with."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = Field(1, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    method: str | None = None
    drafter: str | None = None
    verifier: str | None = None
    gamma: int | None = None
    beam_width: int | None = None
    threshold: float | None = None
    strict: list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool | None = None
    timeout: float | None = Field(None, gt=0, description="seconds, if fewer than the server allows")
    provenance: bool = Field(False, description="say of every token whether it was drafted")
    explain: bool = Field(False, description="say of every iteration what was drafted and why it was kept")

    @property
    def asked_tokens(self) -> int | None:
        """The longest answer that was asked for; None where nothing was said."""
        return self.max_tokens

    def settings(self) -> dict[str, Any]:
        """Changes to the generation options, by name."""
        names = (
            "temperature top_p seed presence_penalty frequency_penalty method drafter verifier gamma beam_width "
            "threshold top_k min_p ignore_eos"
        )
        changes: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        changes["max_new_tokens"] = self.asked_tokens
        changes["stop"] = (self.stop,) if isinstance(self.stop, str) else self.stop and tuple(self.stop)
        changes["strict"] = None if self.strict is None else tuple(self.strict)
        if self.logit_bias is not None:
            changes["logit_bias"] = tuple(f"{token}:{value}" for token, value in self.logit_bias.items())
        return {name: value for name, value in changes.items() if value is not None}


class ChatRequest(_Request):
    """`/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None

    @property
    def asked_tokens(self) -> int | None:
        """See `_Request.asked_tokens`; the newer name wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def settings(self) -> dict[str, Any]:
        """Changes to the generation options, by name."""
        changes = super().settings()
        if self.logprobs and self.top_logprobs is not None:
            changes["top_logprobs"] = self.top_logprobs
        schema = None if self.response_format is None else self.response_format.schema_text()
        return changes if schema is None else changes | {"json_schema": schema}


class CompletionRequest(_Request):
    """`/v1/completions`."""

    prompt: str | list[_TokenId] | list[str] | list[list[_TokenId]]
    logprobs: int | None = None

    def settings(self) -> dict[str, Any]:
        """Changes to the generation options, by name."""
        changes = super().settings()
        return changes if self.logprobs is None else changes | {"top_logprobs": self.logprobs}

    def prompts(self) -> list[str | list[int]]:
        """One or several prompts."""
        if isinstance(self.prompt, str) or all(isinstance(item, int) for item in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(_Strict):
    """`/tokenize`: a text, or a conversation in the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None


class DetokenizeRequest(_Strict):
    """`/detokenize`."""

    model: str | None = None
    tokens: list[_TokenId]
