"""Constraints by name: what they do, how they are spelled, what is refused."""

import math
from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_engine
from tests.tiny_models import EOS, VOCAB_SIZE
from torch import Tensor

from mtad.api import Engine, PromptFormat
from mtad.errors import ConfigError
from mtad.models.loading import SamplingDefaults

RAW = PromptFormat(is_chat=False)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.mark.parametrize("method", ["autoregressive", "speculative"])
def test_greedy_with_a_penalty_equals_that_of_transformers(engine: Engine, method: str) -> None:
    result = engine.generate(
        "some words", style=RAW, method=method, temperature=0, repetition_penalty=1.4, max_new_tokens=30
    )
    model = engine.models.target.model
    prompt = torch.tensor([engine.tokenizer("some words")["input_ids"]])
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    stock = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, repetition_penalty=1.4, max_new_tokens=30
    )
    model.set_attn_implementation(before)
    assert list(result.token_ids) == stock[0, prompt.shape[1] :].tolist()
    assert result.config["repetition_penalty"] == 1.4


def test_a_bias_of_minus_infinity_forbids_a_token_by_id_or_text(engine: Engine) -> None:
    plain = engine.generate("some words", temperature=0, max_new_tokens=20)
    said = plain.token_ids[0]
    letter = engine.tokenizer.convert_ids_to_tokens(said)
    spelled = [("ids", {said: -math.inf}), ("texts", {letter: -math.inf}), ("words", [f"{said}:-inf"])]
    results = [engine.generate("some words", temperature=0, max_new_tokens=20, logit_bias=bias) for _, bias in spelled]
    assert {result.token_ids for result in results} == {results[0].token_ids}
    assert said not in results[0].token_ids


def test_a_large_bias_forces_a_token(engine: Engine) -> None:
    result = engine.generate("some words", logit_bias={7: 1e4}, max_new_tokens=9)
    assert result.token_ids == (7,) * 9


def test_processors_are_called_with_the_whole_text(engine: Engine) -> None:
    lengths = set()

    def alternate(token_ids: Tensor, scores: Tensor) -> Tensor:
        lengths.add(token_ids.shape[1])
        wanted = 10 if token_ids.shape[1] % 2 else 11
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([wanted]), 0.0)

    prompts = [[3, 4, 5], [6, 7]]
    results = engine.generate(prompts, logits_processor=[alternate], max_new_tokens=8)
    assert [result.token_ids for result in results] == [(10, 11) * 4, (11, 10) * 4]
    assert results[0].stats.tokens_per_call > 2
    assert min(lengths) == 2


def test_all_tokens_forbidden_is_a_dead_end(engine: Engine) -> None:
    result = engine.generate("some words", logit_bias=dict.fromkeys(range(VOCAB_SIZE), -math.inf))
    assert (result.text, result.finish_reason) == ("", "dead_end")


def test_the_models_own_penalty_and_min_p_are_defaults_where_the_method_takes_them() -> None:
    defaults = SamplingDefaults(min_p=0.2, repetition_penalty=1.3, eos_token_ids=frozenset({EOS}))
    engine = tiny_engine(defaults=defaults)
    config = engine.generate("some words", max_new_tokens=2).config
    assert (config["min_p"], config["repetition_penalty"]) == (0.2, 1.3)
    config = engine.generate("some words", max_new_tokens=2, method="mtjd").config
    assert (config["min_p"], config["repetition_penalty"]) == (0.2, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_bias": {VOCAB_SIZE: 1.0}}, f"below {VOCAB_SIZE}, got {VOCAB_SIZE}"),
        ({"logit_bias": {"two": 1.0}}, "got 'two', which is 3"),
        ({"logit_bias": {3: math.inf}}, "17:-inf"),
        ({"logit_bias": ["3"]}, "got '3'"),
        ({"logit_bias": ["-3:1"]}, "got '-3:1'"),
        ({"logit_bias": ["3:x"]}, "got '3:x'"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a number > 0"),
        ({"min_p": 1.1}, "min_p must be a number >= 0 and <= 1"),
        ({"method": "beam_sampling", "repetition_penalty": 1.2}, "beam_sampling takes no penalties"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: Engine, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.generate("some words", **changes)
