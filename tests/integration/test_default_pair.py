import warnings
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtad.models.pairs import PairPaths

pytestmark = pytest.mark.integration

NUMBERED_ANSWER = "Here are two fruits:\n\n1. Apple\n2. Banana\n\nTotal:  12"


@pytest.fixture(scope="module")
def tokenizer(default_pair_paths: PairPaths) -> Any:
    return AutoTokenizer.from_pretrained(default_pair_paths.target)


@pytest.fixture(scope="module")
def target(default_pair_paths: PairPaths) -> Any:
    return AutoModelForCausalLM.from_pretrained(default_pair_paths.target, dtype=torch.float32)


@pytest.fixture(scope="module")
def draft(default_pair_paths: PairPaths) -> Any:
    return AutoModelForCausalLM.from_pretrained(default_pair_paths.draft, dtype=torch.float32)


def chat_ids(tokenizer: Any, question: str) -> torch.Tensor:
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids: torch.Tensor = encoded["input_ids"]
    return ids


def log_likelihood(model: Any, prompt: torch.Tensor, answer: list[int]) -> float:
    ids = torch.tensor([answer])
    logits = model(torch.cat([prompt, ids], dim=1)).logits[:, prompt.shape[1] - 1 : -1]
    return float(logits.log_softmax(-1).gather(2, ids[:, :, None]).sum())


@torch.no_grad()
def test_the_target_knows_the_capital_of_france(target: Any, tokenizer: Any) -> None:
    ids = chat_ids(tokenizer, "What is the capital of France?")
    answer = target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(answer[0, ids.shape[1] :]) == "The capital of France is Paris.<|im_end|>"


@torch.no_grad()
def test_both_models_share_one_vocabulary_and_mostly_agree(target: Any, draft: Any, tokenizer: Any) -> None:
    assert target.config.vocab_size == draft.config.vocab_size == len(tokenizer) == 49_152
    ids = chat_ids(tokenizer, "Name two fruits.")
    ids = torch.cat([ids, torch.tensor([tokenizer.encode(NUMBERED_ANSWER)])], dim=1)
    overlap = torch.minimum(target(ids).logits.softmax(-1), draft(ids).logits.softmax(-1)).sum(-1)
    assert overlap[0, -20:].mean() > 0.3


@torch.no_grad()
def test_digits_are_split_as_the_target_was_trained(target: Any, tokenizer: Any) -> None:
    assert tokenizer.tokenize("\n\n1.  22") == ["ĊĊ", "1", ".", "ĠĠ", "2", "2"]
    newline, two_newlines, space, two_spaces = tokenizer.convert_tokens_to_ids(["Ċ", "ĊĊ", "Ġ", "ĠĠ"])
    apart = {two_newlines: [newline, newline], two_spaces: [space, space]}
    joined = tokenizer.encode(NUMBERED_ANSWER)
    split = [part for token in joined for part in apart.get(token, [token])]
    assert len(split) > len(joined)
    prompt = chat_ids(tokenizer, "Name two fruits.")
    assert log_likelihood(target, prompt, joined) > log_likelihood(target, prompt, split) + 2


def test_special_tokens_and_chat_template_are_in_place(tokenizer: Any) -> None:
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>") == [1, *tokenizer.encode("user\nhi"), 2]
    assert tokenizer.eos_token == "<|im_end|>"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


@pytest.mark.parametrize(
    "text", ["  two  spaces\n\n\ttabs 1234", "ünïcödé 漢字 😀", "don't , no !", "def f(x):\n    return 2"]
)
def test_text_survives_encoding_and_decoding(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_models_stop_at_the_end_of_the_turn(target: Any, draft: Any) -> None:
    for model in (target, draft):
        assert model.generation_config is not None
        assert model.generation_config.eos_token_id == 2


@torch.no_grad()
def test_the_shipped_draft_assists_transformers(target: Any, draft: Any, tokenizer: Any) -> None:
    ids = chat_ids(tokenizer, "What is the capital of France?")
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    alone = target.generate(ids, **arguments)
    calls = {"target": 0, "draft": 0}
    handles = [
        model.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, model in (("target", target), ("draft", draft))
    ]
    with warnings.catch_warnings():
        # What transformers says about its own settings on this way is not ours to mend.
        warnings.simplefilter("ignore")
        assisted = target.generate(ids, assistant_model=draft, **arguments)
    for handle in handles:
        handle.remove()
    assert torch.equal(alone, assisted)
    assert calls["draft"] > 0
    assert calls["target"] < assisted.shape[1] - ids.shape[1]
