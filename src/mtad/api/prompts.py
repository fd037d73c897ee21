"""Prompts become token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtad.errors import PromptError

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or a conversation of `{"role": ..., "content": ...}` messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """How text becomes a prompt.

    Attributes:
        is_chat: Wrap text as a user message in the tokenizer's chat template; None does so where there is one.
        system: System message in front of text prompts; needs the chat template.
    """

    is_chat: bool | None = None
    system: str | None = None


def encode_prompt(tokenizer: Any, prompt: Prompt, style: PromptFormat) -> list[int]:
    """Token ids of one prompt, special tokens included.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: Text, token ids, or messages.
        style: How text is wrapped; ignored for token ids.

    Raises:
        PromptError: The prompt is empty, or asks for a chat template that the tokenizer lacks.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("the prompt is empty; give some text to continue or answer")
        token_ids = _encode_text(tokenizer, prompt, style)
    elif prompt and all(isinstance(item, int) for item in prompt):
        token_ids = [int(item) for item in prompt]  # type: ignore[arg-type]
        _check_ids(tokenizer, token_ids)
    elif prompt and all(isinstance(item, Mapping) for item in prompt):
        token_ids = _apply_template(tokenizer, list(prompt))
    else:
        raise PromptError(f"a prompt must be text, token ids or messages, and not empty; got {prompt!r}")
    if not token_ids:
        raise PromptError("the prompt has no tokens; give some text to continue or answer")
    return token_ids


def _encode_text(tokenizer: Any, text: str, style: PromptFormat) -> list[int]:
    has_template = getattr(tokenizer, "chat_template", None) is not None
    is_chat = has_template if style.is_chat is None else style.is_chat
    if style.system is not None and not is_chat:
        raise PromptError("a system message needs the chat template; use chat formatting or leave it out")
    if not is_chat:
        return list(tokenizer(text)["input_ids"])
    messages = [{"role": "system", "content": style.system}] if style.system is not None else []
    return _apply_template(tokenizer, [*messages, {"role": "user", "content": text}])


def _apply_template(tokenizer: Any, messages: list[Any]) -> list[int]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError("the tokenizer has no chat template; use raw text, or a model tuned for chat")
    for message in messages:
        if not {"role", "content"} <= set(message):
            raise PromptError(f"a message needs 'role' and 'content', got {sorted(message)}")
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def _check_ids(tokenizer: Any, token_ids: list[int]) -> None:
    size = len(tokenizer)
    outside = [token for token in token_ids if not 0 <= token < size]
    if outside:
        raise PromptError(
            f"token id {outside[0]} is outside the vocabulary of {size}; encode with the model's tokenizer"
        )
