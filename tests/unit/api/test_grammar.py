"""Answers confined to a grammar, from the engine down, on tiny random models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_engine import CHAT_TEMPLATE, tiny_engine
from tests.tiny_models import EOS

from mtad.api import Engine, PromptFormat
from mtad.errors import ConfigError
from mtad.models.loading import SamplingDefaults

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["up", "down"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "size", "kind", "tags"],
    "additionalProperties": False,
}
COMBINATIONS: list[dict[str, Any]] = [
    {"method": "autoregressive"},
    {"method": "speculative"},
    {"method": "mtad"},
    {"method": "mmtad"},
    {"method": "mmtad", "draw": "gumbel", "threshold": 0.05},
    {"method": "speculative", "drafter": "branching_tree", "verifier": "traversal"},
    {"method": "mmtad", "drafter": "dynamic_tree"},
    {"method": "speculative", "drafter": "prompt_lookup"},
    {"method": "mmtad", "exit_layers": 1},
]


def grammar_engine() -> Engine:
    engine = tiny_engine(max_positions=512)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return Engine(replace(engine.models, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return grammar_engine()


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_every_answer_that_ends_is_valid(engine: Engine, options: dict[str, Any], temperature: float) -> None:
    prompts = ["a thing", "b", "some more of it", "again", "c"]
    results = engine.generate(
        prompts, json_schema=SCHEMA, temperature=temperature, max_new_tokens=140, seed=3, batch_size=3, **options
    )
    for result in results:
        assert result.finish_reason == "stop"
        assert result.token_ids[-1] == EOS
        Draft202012Validator(SCHEMA).validate(json.loads(result.text))
    assert len({result.text for result in results}) > 1
    assert 0 < results[0].stats.constraint_s < results[0].stats.decode_s


@pytest.mark.parametrize("options", COMBINATIONS[1:5], ids=lambda options: "-".join(map(str, options.values())))
def test_a_row_of_a_batch_is_the_row_alone(engine: Engine, options: dict[str, Any]) -> None:
    prompts = ["a thing", "b", "some more of it"]
    together = engine.generate(prompts, json_schema=SCHEMA, seed=5, max_new_tokens=140, **options)
    for prompt, result in zip(prompts, together, strict=True):
        alone = engine.generate(prompt, json_schema=SCHEMA, seed=5, max_new_tokens=140, **options)
        assert alone.token_ids == result.token_ids
        assert alone.accepted_lengths == result.accepted_lengths


def test_lossless_greedy_decoding_is_greedy_decoding_under_the_grammar(engine: Engine) -> None:
    single, *others = (
        engine.generate("a thing", json_schema=SCHEMA, temperature=0, max_new_tokens=140, **options)
        for options in (COMBINATIONS[0], COMBINATIONS[1], COMBINATIONS[5])
    )
    for other in others:
        assert other.token_ids == single.token_ids
    assert others[0].stats.tokens_per_call > 1


def test_the_end_is_allowed_exactly_where_the_grammar_may_end(engine: Engine) -> None:
    lengths = set()
    for seed in range(30):
        result = engine.generate("b", regex="(xyz){1,4}", seed=seed, temperature=2.0, top_k=0, top_p=1.0)
        assert result.text in {"xyz" * count for count in range(1, 5)}
        assert result.finish_reason == "stop"
        lengths.add(len(result.text))
    assert len(lengths) > 1


def test_an_answer_cut_at_the_limit_says_so(engine: Engine) -> None:
    result = engine.generate("b", json_schema=SCHEMA, max_new_tokens=6)
    assert (result.finish_reason, len(result.token_ids)) == ("length", 6)
    assert result.text.startswith("{")


def test_stop_texts_cut_inside_a_grammar(engine: Engine) -> None:
    result = engine.generate("b", regex="ab{3}c{9}", stop=["cc"])
    assert (result.text, result.finish_reason) == ("abbb", "stop")


def test_a_dead_end_is_said(engine: Engine) -> None:
    result = engine.generate("b", grammar='start: "ab" X\nX: /b/ & /c/')
    assert (result.text, result.finish_reason) == ("ab", "dead_end")


def test_conversations_and_raw_texts_start_at_the_grammars_start(engine: Engine) -> None:
    for prompt, style in (([{"role": "user", "content": "b"}], None), ("b", PromptFormat(is_chat=False))):
        [result] = engine.generate([prompt], regex="xy?z", style=style)
        assert result.text in ("xz", "xyz")


def test_files_and_texts_say_the_same_and_results_hold_the_text(engine: Engine, tmp_path: Path) -> None:
    schema, lark = tmp_path / "schema.json", tmp_path / "words.lark"
    schema.write_text(json.dumps(SCHEMA))
    lark.write_text('start: "x" "y"? "z"\n')
    by_file = engine.generate("b", json_schema=str(schema), max_new_tokens=140)
    assert by_file.text == engine.generate("b", json_schema=json.dumps(SCHEMA), max_new_tokens=140).text
    assert json.loads(by_file.config["json_schema"]) == SCHEMA
    assert engine.generate("b", grammar=str(lark)).text == engine.generate("b", grammar=lark.read_text()).text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"json_schema": "no.json"}, r"json_schema file no.json cannot be read \(No such file"),
        ({"grammar": "no.lark"}, r"grammar file no.lark cannot be read \(No such file"),
        ({"json_schema": "{}", "regex": "a"}, "got json_schema and regex, expected one grammar"),
        ({"regex": "a", "ignore_eos": True}, "regex ends answers with the end-of-text token"),
        ({"regex": "a", "method": "mtjd"}, "mtjd takes no .* grammar"),
        ({"regex": "("}, "regex does not compile"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: Engine, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.stream("b", **changes)


def test_a_file_that_is_no_text_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_bytes(b"\xff{}")
    with pytest.raises(ConfigError, match=r"is not UTF-8 \(byte 0\)"):
        engine.stream("b", json_schema=str(tmp_path / "schema.json"))


def test_a_model_without_an_end_is_refused() -> None:
    engine = tiny_engine(defaults=SamplingDefaults())
    with pytest.raises(ConfigError, match="regex needs a model with an end-of-text token"):
        engine.stream("b", regex="a")
