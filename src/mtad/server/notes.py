"""What is known of one HTTP request by its end."""

import re
from dataclasses import dataclass, field
from secrets import token_hex
from time import monotonic
from typing import Any, cast

from starlette.types import Scope

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_NAME = "mtad_note"


@dataclass(slots=True, kw_only=True)
class RequestNote:
    """Filled while a request is answered; its line in the log, and its id in errors, come from here.

    Attributes:
        request_id: The client's own, else made here.
        method: Of HTTP.
        path: As it was asked for.
        address: Of the client.
        key: Name of the key, where keys are asked for.
        status: Of the reply; None before there is one.
        started: Reading of `monotonic`.
        num_prompt_tokens: Of all prompts, each once.
        num_tokens: Of all answers.
        num_calls: Iterations of all answers.
        first_token_s: Seconds until the first token; None where there was none.
        finish_reasons: One for every answer that has ended.
        prompts: What was asked; only kept for `--log-prompts`.
    """

    request_id: str
    method: str = ""
    path: str = ""
    address: str = ""
    key: str | None = None
    status: int | None = None
    started: float = field(default_factory=monotonic)
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_calls: int = 0
    first_token_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    prompts: Any = None

    @property
    def client(self) -> str:
        """Whose limits and turns apply: the key's name, else the address."""
        return self.address if self.key is None else self.key

    def note_tokens(self, count: int) -> None:
        """An iteration has brought tokens."""
        if self.first_token_s is None:
            self.first_token_s = monotonic() - self.started
        self.num_tokens += count
        self.num_calls += 1

    def fields(self) -> dict[str, Any]:
        """The line of the log; what there is none of is left out."""
        found: dict[str, Any] = {
            "request_id": self.request_id,
            "client": self.address,
            "key": self.key,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "prompt_tokens": self.num_prompt_tokens or None,
            "answer_tokens": self.num_tokens if self.num_prompt_tokens else None,
            "tokens_per_call": round(self.num_tokens / self.num_calls, 3) if self.num_calls else None,
            "first_token_s": None if self.first_token_s is None else round(self.first_token_s, 4),
            "duration_s": round(monotonic() - self.started, 4),
            "finish_reasons": self.finish_reasons or None,
            "prompts": self.prompts,
        }
        return {name: value for name, value in found.items() if value is not None}


def new_note(scope: Scope, given_id: str | None) -> RequestNote:
    """A note for a request, kept in its scope.

    Args:
        scope: Of the ASGI call; changed.
        given_id: What the client calls the request; anything but a short plain word is replaced.
    """
    client = scope.get("client")
    note = RequestNote(
        request_id=given_id if given_id is not None and _SANE_ID.fullmatch(given_id) else token_hex(12),
        method=scope["method"],
        path=scope["path"],
        address=client[0] if client else "",
    )
    scope[_NAME] = note
    return note


def note_of(scope: Scope) -> RequestNote:
    """The note that `new_note` has left."""
    return cast("RequestNote", scope[_NAME])
