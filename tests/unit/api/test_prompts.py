"""Texts, token ids and conversations become token ids; everything else becomes one sentence."""

from typing import Any

import pytest
import torch
from tests.tiny_engine import CHARACTERS, SPECIAL_TOKENS, tiny_tokenizer
from tests.tiny_models import VOCAB_SIZE

from mtad.api.prompts import PromptFormat, encode_prompt, encode_prompts
from mtad.errors import PromptError

RAW = PromptFormat(is_chat=False)
CHAT = PromptFormat(is_chat=True)
EITHER = PromptFormat()


def ids(text: str) -> list[int]:
    return [len(SPECIAL_TOKENS) + CHARACTERS.index(character) for character in text]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def bare_tokenizer() -> Any:
    return tiny_tokenizer(has_template=False)


def refusal(tokenizer: Any, prompt: Any, style: PromptFormat = EITHER) -> str:
    with pytest.raises(PromptError) as caught:
        encode_prompt(tokenizer, prompt, style)
    return str(caught.value)


STRIPS = "{% for message in messages %}{{ message.content | trim }}{% endfor %}>"
LOOKS = "{% for message in messages %}{{ message.content }}{% if 'x' in message.content %}!{% endif %}{% endfor %}"


@pytest.mark.parametrize("template", [None, STRIPS, LOOKS], ids=["plain", "strips", "looks"])
@pytest.mark.parametrize("style", [RAW, EITHER, PromptFormat(system="be kind")], ids=["raw", "chat", "system"])
def test_many_prompts_are_encoded_as_each_of_them_is(template: str | None, style: PromptFormat) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    prompts = [f" word {number} x" for number in range(9)] + [[1, 5, 6]]
    assert encode_prompts(tokenizer, prompts, style) == [encode_prompt(tokenizer, item, style) for item in prompts]


def test_a_bad_prompt_among_many_is_refused(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        encode_prompts(tokenizer, ["a"] * 9 + [" "], CHAT)


def test_raw_text_is_encoded_as_it_stands(tokenizer: Any) -> None:
    assert encode_prompt(tokenizer, " abc\n", RAW) == ids(" abc\n")


def test_the_chat_template_is_the_default_where_there_is_one(tokenizer: Any, bare_tokenizer: Any) -> None:
    expected = ids("user: hi\nassistant: ")
    assert encode_prompt(tokenizer, "hi", EITHER) == expected
    assert encode_prompt(tokenizer, "hi", CHAT) == expected
    assert encode_prompt(bare_tokenizer, "hi", EITHER) == ids("hi")


def test_a_system_message_goes_in_front(tokenizer: Any) -> None:
    style = PromptFormat(system="be brief")
    expected = ids("system: be brief\nuser: hi\nassistant: ")
    assert encode_prompt(tokenizer, "hi", style) == expected
    assert encode_prompt(tokenizer, [{"role": "user", "content": "hi"}], style) == expected


def test_the_system_message_of_a_conversation_stays(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    expected = ids("system: be kind\nuser: hi\nassistant: ")
    assert encode_prompt(tokenizer, messages, PromptFormat(system="be brief")) == expected


def test_token_ids_pass_unchanged(tokenizer: Any) -> None:
    assert encode_prompt(tokenizer, [1, 7, 60], CHAT) == [1, 7, 60]
    assert encode_prompt(tokenizer, (1, 7, 60), RAW) == [1, 7, 60]
    assert encode_prompt(tokenizer, torch.tensor([1, 7, 60]).numpy().tolist(), RAW) == [1, 7, 60]


@pytest.mark.parametrize("style", [RAW, CHAT, EITHER])
@pytest.mark.parametrize("prompt", ["", "  \n\t", "\N{NO-BREAK SPACE}"])
def test_an_empty_text_is_refused(tokenizer: Any, prompt: str, style: PromptFormat) -> None:
    assert refusal(tokenizer, prompt, style) == "the prompt is empty; give some text to continue or answer"


@pytest.mark.parametrize("prompt", [[], (), 5, 0, None, b"abc", {"role": "user"}, [1, "a"], [1.5], ["text"]])
def test_what_is_no_prompt_is_refused(tokenizer: Any, prompt: Any) -> None:
    message = refusal(tokenizer, prompt)
    assert "must be text, a list of token ids or a list of messages, and not empty" in message
    assert message.endswith(repr(prompt))


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 10**9])
def test_a_token_outside_the_vocabulary_is_refused(tokenizer: Any, token: int) -> None:
    assert f"token id {token} is outside the vocabulary of {VOCAB_SIZE}" in refusal(tokenizer, [1, token])


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "hi"}, {"role": "user", "content": None}, {}])
def test_a_message_needs_role_and_content(tokenizer: Any, message: dict[str, Any]) -> None:
    assert "a message needs 'role' and 'content', both text" in refusal(tokenizer, [message])


def test_what_the_template_refuses_is_one_sentence(tokenizer: Any) -> None:
    message = refusal(tokenizer, [{"role": "tool", "content": "42"}])
    assert message.startswith("the model's chat template refuses this conversation (no tools here)")


def test_without_a_template_nothing_can_be_chat(tokenizer: Any, bare_tokenizer: Any) -> None:
    conversation = [{"role": "user", "content": "hi"}]
    assert "no chat template" in refusal(bare_tokenizer, "hi", CHAT)
    assert "no chat template" in refusal(bare_tokenizer, conversation)
    assert "a system message needs the chat template" in refusal(bare_tokenizer, "hi", PromptFormat(system="x"))
    assert "a system message needs the chat template" in refusal(
        tokenizer, "hi", PromptFormat(is_chat=False, system="x")
    )
    assert "a conversation needs the chat template" in refusal(tokenizer, conversation, RAW)


@pytest.mark.parametrize("prompt", ["ab\ud800", [{"role": "user", "content": "ab\ud800"}]])
def test_half_a_character_is_refused(tokenizer: Any, prompt: Any) -> None:
    assert "not valid Unicode text (character 3)" in refusal(tokenizer, prompt)
