"""A comparison runs every contender on every prompt once, whatever interrupts it."""

import json
from typing import Any

import pytest
from tests.tiny_engine import tiny_engine

from mtad.api import Engine, PromptFormat
from mtad.api.contenders import Contender, parse_contenders
from mtad.bench.compare import Workload, continue_record, open_record, run_comparison
from mtad.config import GenerationOptions
from mtad.errors import ConfigError
from mtad.results.comparison import summarize

BASE = GenerationOptions(gamma=2, beam_width=2, max_new_tokens=9, ignore_eos=True)
WORKLOAD = Workload(
    prompts=["once", "upon a time", "there was"], style=PromptFormat(is_chat=False), seeds=range(4, 6), batch_size=2
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture
def contenders() -> list[Contender]:
    return parse_contenders(["autoregressive", "block", "mmtad"], BASE)


def compared(engine: Engine, contenders: list[Contender], record: dict[str, Any] | None = None) -> dict[str, Any]:
    record = record or open_record(engine, contenders, WORKLOAD)
    run_comparison(engine, contenders, WORKLOAD, record, lambda label: None)
    return record


def without_times(record: dict[str, Any]) -> Any:
    return {label: {key: row[key] for key in row if key != "decode_s"} for label, row in record["rows"].items()}


def test_answers_are_those_of_the_engine(engine: Engine, contenders: list[Contender]) -> None:
    record = compared(engine, contenders)
    for item in contenders:
        expected = []
        for seed in WORKLOAD.seeds:
            results = engine.generate(list(WORKLOAD.prompts), item.options, seed=seed, style=WORKLOAD.style)
            expected += [
                (index, result.stats.target_calls, sum(result.log_probs)) for index, result in enumerate(results)
            ]
        answers = record["rows"][item.label]["answers"]
        found = [(answer["prompt"], answer["target_calls"], answer["log_prob_sum"]) for answer in answers]
        assert found == [(prompt, calls, pytest.approx(total)) for prompt, calls, total in expected]
    assert [item.num_answers for item in summarize(record)] == [6, 6, 6]


def test_contenders_take_turns(engine: Engine, contenders: list[Contender]) -> None:
    labels: list[str] = []
    run_comparison(engine, contenders, WORKLOAD, open_record(engine, contenders, WORKLOAD), labels.append)
    assert labels[:6] == ["autoregressive", "block", "mmtad", "block", "mmtad", "autoregressive"]
    assert len(labels) == 4 * 3


def test_a_killed_run_goes_on_where_it_was(
    engine: Engine, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compared(engine, contenders)
    cut = open_record(engine, contenders, WORKLOAD)
    notes = iter(range(5))

    def stop(label: str) -> None:
        if next(notes, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(engine, contenders, WORKLOAD, cut, stop)
    found = json.loads(json.dumps(cut))
    calls: list[Any] = []
    generate = engine.generate
    monkeypatch.setattr(engine, "generate", lambda *args, **kwargs: calls.append(args) or generate(*args, **kwargs))  # type: ignore[func-returns-value]
    record = compared(engine, contenders, continue_record(found, open_record(engine, contenders, WORKLOAD)))
    assert len(calls) == 12 - 6
    assert json.loads(json.dumps(without_times(record))) == json.loads(json.dumps(without_times(whole)))
    assert len(record["continued"]) == 1


def test_a_record_takes_further_contenders(engine: Engine, contenders: list[Contender]) -> None:
    record = json.loads(json.dumps(compared(engine, contenders[:1])))
    fresh = open_record(engine, contenders, WORKLOAD)
    assert list(continue_record(record, fresh)["rows"]) == ["autoregressive", "block", "mmtad"]


def test_a_record_of_another_run_is_refused(engine: Engine, contenders: list[Contender]) -> None:
    fresh = open_record(engine, contenders, WORKLOAD)
    with pytest.raises(ConfigError, match="its workload differs"):
        continue_record(json.loads(json.dumps(fresh)) | {"workload": {}}, fresh)
    other = open_record(engine, parse_contenders(["block"], GenerationOptions(gamma=3)), WORKLOAD)
    with pytest.raises(ConfigError, match="block with other settings"):
        continue_record(json.loads(json.dumps(other)), fresh)
