"""What answers look like, in OpenAI's words and ours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mtad.structures import GenerationResult, Piece, StepExplanation

TokenText = Callable[[int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How one request wants its answer.

    Attributes:
        kind: `chat` or `text`.
        reply_id: The request's name.
        created: Unix seconds.
        model: The target's name.
        has_log_probs: Whether tokens come with log-probabilities.
        has_provenance: Whether streams say where every token came from.
        is_lossless: Whether the rule keeps the target's law; said at the end of a stream.
        token_text: Text of one token.
    """

    kind: Literal["chat", "text"]
    reply_id: str
    created: int
    model: str
    has_log_probs: bool
    has_provenance: bool
    is_lossless: bool | None
    token_text: TokenText

    def frame(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        """A whole reply, or a chunk of a stream, around its choices."""
        chat = "chat.completion.chunk" if is_chunk else "chat.completion"
        kind = chat if self.kind == "chat" else "text_completion"
        head = {"id": self.reply_id, "object": kind, "created": self.created, "model": self.model}
        return head | {"choices": choices}

    def log_probs(self, item: Piece | GenerationResult) -> dict[str, Any] | None:
        """Log-probabilities of tokens under the target, in the form of the endpoint; None where not asked for."""
        if not self.has_log_probs:
            return None
        tops = item.top_log_probs or ((),) * len(item.token_ids)
        rows = list(zip(item.token_ids, item.log_probs, tops, strict=True))
        if self.kind == "chat":
            return {"content": [self._chat_entry(*row) for row in rows]}
        return {
            "tokens": [self.token_text(token) for token, _, _ in rows],
            "token_logprobs": [value for _, value, _ in rows],
            "top_logprobs": [{self.token_text(token): value for token, value in best} for _, _, best in rows],
        }

    def _chat_entry(self, token: int, value: float, best: Sequence[tuple[int, float]]) -> dict[str, Any]:
        entry = self._named(token, value)
        return entry | {"top_logprobs": [self._named(*other) for other in best]}

    def _named(self, token: int, value: float) -> dict[str, Any]:
        text = self.token_text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice in a chat."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return self.frame([choice], is_chunk=True)

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A chunk with the tokens of one iteration."""
        choice: dict[str, Any] = {"index": index, "logprobs": self.log_probs(piece), "finish_reason": None}
        choice |= {"delta": {"content": piece.text}} if self.kind == "chat" else {"text": piece.text}
        if piece.result is not None:
            choice["finish_reason"] = finish_reason(piece.result)
        extra: dict[str, Any] = {}
        if self.has_provenance:
            names = ("token_ids", "provenance", "log_probs", "segments")
            extra |= {name: getattr(piece, name) for name in names}
        if piece.step is not None:
            extra["step"] = explanation(piece.step, self.token_text)
        if piece.result is not None:
            extra |= {"statistics": statistics(piece.result), "is_lossless": self.is_lossless}
        return self.frame([choice | {"mtad": extra} if extra else choice], is_chunk=True)

    def whole(self, results: Sequence[GenerationResult], num_prompt_tokens: int) -> dict[str, Any]:
        """The reply of a request that does not stream."""
        choices = [self._choice(index, result) for index, result in enumerate(results)]
        return self.frame(choices, is_chunk=False) | {"usage": usage(results, num_prompt_tokens)}

    def _choice(self, index: int, result: GenerationResult) -> dict[str, Any]:
        extra: dict[str, Any] = {"statistics": statistics(result)}
        if self.has_provenance:
            names = ("token_ids", "provenance", "log_probs")
            extra |= {name: getattr(result, name) for name in names}
        choice = {"index": index, "finish_reason": finish_reason(result), "logprobs": self.log_probs(result)}
        if self.kind == "chat":
            return choice | {"message": {"role": "assistant", "content": result.text}, "mtad": extra}
        return choice | {"text": result.text, "mtad": extra}


def explanation(step: StepExplanation, token_text: TokenText) -> dict[str, Any]:
    """What an iteration drafted and kept, with the tokens' texts; JSON has no infinity, so null stands for it."""
    document = asdict(step)
    for name in ("joint_draft_log_probs", "joint_target_log_probs", "joint_log_ratios"):
        document[name] = [value if math.isfinite(value) else None for value in document[name]]
    return document | {
        "texts": [token_text(token) for token in step.tokens],
        "pending_text": token_text(step.pending_token),
        "next_text": token_text(step.next_token),
    }


def usage(results: Sequence[GenerationResult], num_prompt_tokens: int) -> dict[str, int]:
    """Tokens of the request's prompts, each once, and of all answers."""
    answered = sum(result.stats.num_tokens for result in results)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": answered,
        "total_tokens": num_prompt_tokens + answered,
    }


def finish_reason(result: GenerationResult) -> str:
    """In OpenAI's words; an answer that no token could follow has stopped."""
    return "length" if result.finish_reason == "length" else "stop"


def statistics(result: GenerationResult) -> dict[str, Any]:
    """What the answer cost and how likely it is."""
    stats = result.stats
    return {
        "method": result.method,
        "finish_reason": result.finish_reason,
        "target_calls": stats.target_calls,
        "tokens_per_call": stats.tokens_per_call,
        "acceptance_by_depth": stats.acceptance_by_depth,
        "perplexity": stats.perplexity,
        "refused_share": stats.refused_share,
        "tokens_per_s": stats.tokens_per_s,
        "num_reused_prompt_tokens": stats.num_reused_prompt_tokens,
        "seed": result.config["seed"],
    }


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None, request_id: str
) -> dict[str, Any]:
    """An error in OpenAI's form, with the request's id beside it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id}}
