"""Prompts become token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from mtad.errors import PromptError

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or a conversation of `{"role": ..., "content": ...}` messages."""

_FEWEST_FRAMED = 8
_PROBE = "mtad-probe"
_SAMPLES = (' A <b>line</b> & "more" \n\n', "{{ x }}\t<|end|>'s\\n")
"""Texts that a template which strips, escapes or looks at its messages would change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """How text becomes a prompt.

    Attributes:
        is_chat: Wrap text as a user message in the tokenizer's chat template; None does so where there is one.
        system: System message in front of texts, and of conversations that have none; needs the chat template.
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
        PromptError: The prompt is empty or malformed, or asks for a chat template that the tokenizer lacks.
    """
    if isinstance(prompt, str):
        token_ids = _encode_text(tokenizer, prompt, style)
    elif _is_list_of(prompt, Integral):
        token_ids = [int(item) for item in prompt]  # type: ignore[arg-type]
        _check_ids(tokenizer, token_ids)
    elif _is_list_of(prompt, Mapping):
        token_ids = _encode_messages(tokenizer, list(prompt), style)
    else:
        raise PromptError(
            f"a prompt must be text, a list of token ids or a list of messages, and not empty; got {prompt!r}"
        )
    if not token_ids:
        raise PromptError("the prompt has no tokens; give some text to continue or answer")
    return token_ids


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt], style: PromptFormat) -> list[list[int]]:
    """Token ids of many prompts, the same as `encode_prompt` gives one by one.

    Where the chat template puts a text in as it is, texts are put in without running it, and encoded together.

    Args:
        tokenizer: A transformers tokenizer.
        prompts: Texts, token ids, or messages.
        style: How texts are wrapped.

    Raises:
        PromptError: As `encode_prompt`.
    """
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    frame = _find_frame(tokenizer, style) if len(texts) >= _FEWEST_FRAMED else None
    if frame is None:
        return [encode_prompt(tokenizer, prompt, style) for prompt in prompts]
    for text in texts:
        _check_text(text)
    framed = [frame[0] + text + frame[1] for text in texts]
    encoded = iter(tokenizer(framed, add_special_tokens=False, verbose=False)["input_ids"])
    return [
        list(next(encoded)) if isinstance(prompt, str) else encode_prompt(tokenizer, prompt, style)
        for prompt in prompts
    ]


def _find_frame(tokenizer: Any, style: PromptFormat) -> tuple[str, str] | None:
    """What the chat template writes around a text; None where it does more than that."""
    if getattr(tokenizer, "chat_template", None) is None or style.is_chat is False:
        return None
    opening = [] if style.system is None else [{"role": "system", "content": style.system}]
    before, middle, after = _render(tokenizer, opening, _PROBE).partition(_PROBE)
    is_plain = bool(middle) and all(_render(tokenizer, opening, text) == before + text + after for text in _SAMPLES)
    return (before, after) if is_plain else None


def _render(tokenizer: Any, opening: list[dict[str, str]], text: str) -> str:
    messages = [*opening, {"role": "user", "content": text}]
    found: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return found


def _is_list_of(prompt: Any, kind: type) -> bool:
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and len(prompt) > 0
    return is_list and all(isinstance(item, kind) for item in prompt)


def _encode_text(tokenizer: Any, text: str, style: PromptFormat) -> list[int]:
    _check_text(text)
    has_template = getattr(tokenizer, "chat_template", None) is not None
    is_chat = has_template if style.is_chat is None else style.is_chat
    if style.system is not None and not is_chat:
        raise PromptError("a system message needs the chat template; use chat formatting or leave it out")
    if not is_chat:
        # Without verbose=False the tokenizer would warn about long prompts, which the engine itself refuses.
        return list(tokenizer(text, verbose=False)["input_ids"])
    return _apply_template(tokenizer, [{"role": "user", "content": text}], style.system)


def _check_text(text: str) -> None:
    if not text.strip():
        raise PromptError("the prompt is empty; give some text to continue or answer")
    _check_characters(text)


def _encode_messages(tokenizer: Any, messages: list[Any], style: PromptFormat) -> list[int]:
    if style.is_chat is False:
        raise PromptError("a conversation needs the chat template, but raw text was asked for; use chat formatting")
    for message in messages:
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise PromptError(f"a message needs 'role' and 'content', both text; got {dict(message)!r}")
        _check_characters(message["content"])
    has_system = messages[0]["role"] == "system"
    return _apply_template(tokenizer, messages, None if has_system else style.system)


def _apply_template(tokenizer: Any, messages: list[Any], system: str | None) -> list[int]:
    from jinja2 import TemplateError

    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError("the tokenizer has no chat template; use raw text, or a model tuned for chat")
    opening = [] if system is None else [{"role": "system", "content": system}]
    try:
        return list(tokenizer.apply_chat_template([*opening, *messages], add_generation_prompt=True, return_dict=False))
    except TemplateError as error:
        raise PromptError(
            f"the model's chat template refuses this conversation ({error}); change its roles, or use raw text"
        ) from error


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt is not valid Unicode text (character {error.start + 1}); give it as UTF-8"
        ) from error


def _check_ids(tokenizer: Any, token_ids: list[int]) -> None:
    size = len(tokenizer)
    outside = [token for token in token_ids if not 0 <= token < size]
    if outside:
        raise PromptError(
            f"token id {outside[0]} is outside the vocabulary of {size}; encode with the model's tokenizer"
        )
