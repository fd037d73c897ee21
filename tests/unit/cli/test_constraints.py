"""Constraints on the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.byte_tokenizer import byte_tokenizer
from tests.unit.cli.conftest import RunCommand

from mtad.api import Engine
from mtad.config import ModelOptions
from mtad.models import loading


@pytest.fixture
def grammar_loads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[ModelOptions]:
    calls: list[ModelOptions] = []

    def load(options: ModelOptions, **_: Any) -> Any:
        calls.append(options)
        return replace(engine.models, tokenizer=byte_tokenizer())

    monkeypatch.setattr(loading, "load_models", load)
    return calls


def test_a_schema_in_a_file_confines_the_answer(
    command: RunCommand, grammar_loads: list[ModelOptions], tmp_path: Path
) -> None:
    schema = {"type": "array", "items": {"enum": [1, 23]}, "minItems": 2, "maxItems": 3}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    outcome = command("generate", "b", "--raw", "--json", "--json-schema", str(tmp_path / "schema.json"))
    document = json.loads(outcome.out)
    assert outcome.status == 0
    assert set(json.loads(document["text"])) <= {1, 23}
    assert document["finish_reason"] == "stop"
    assert json.loads(document["config"]["json_schema"]) == schema
    assert len(grammar_loads) == 1


def test_biases_may_be_given_several_times(command: RunCommand, grammar_loads: list[ModelOptions]) -> None:
    words = ["--logit-bias", "7:1000,8:-inf", "--logit-bias", "9:2.5"]
    outcome = command("generate", "b", "--raw", "--json", "--max-new-tokens", "4", *words)
    document = json.loads(outcome.out)
    assert document["token_ids"] == [7] * 4
    assert document["config"]["logit_bias"] == ["7:1000,8:-inf", "9:2.5"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--regex", "(ab"], "unclosed group"),
        (["--grammar", "start: b"], "unknown name"),
        (["--json-schema", '{"type": "strin"}'], "Invalid type: strin"),
        (["--json-schema", "nowhere.json"], "nowhere.json cannot be read"),
        (["--json-schema", "{}", "--regex", "a"], "expected one grammar at most"),
        (["--logit-bias", "x"], "17:-5,42:2.5"),
        (["--min-p", "2"], "min_p must be"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_loaded(
    command: RunCommand, grammar_loads: list[ModelOptions], words: list[str], message: str
) -> None:
    outcome = command("generate", "b", *words)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") <= 2
    assert grammar_loads == []
