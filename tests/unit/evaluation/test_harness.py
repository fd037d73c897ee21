"""lm-evaluation-harness runs tasks from local files through the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_engine

from mtad.api import Engine
from mtad.config import GenerationOptions
from mtad.errors import CapacityError, ConfigError

# The harness and what it imports warn about their own affairs.
pytestmark = pytest.mark.filterwarnings("ignore")

CHOICE = """task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/choice.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""
GENERATE = """task: tiny_generate
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/choice.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "a"
generation_kwargs:
  until: ["b"]
  max_gen_toks: 5
metric_list:
  - metric: exact_match
"""
ROLLING = """task: tiny_rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/choice.jsonl
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
"""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = [{"question": f"is {word} good?", "choices": [" yes", " no"], "answer": 0} for word in ("a", "the sea", "x")]
    (tmp_path / "choice.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in (("choice", CHOICE), ("generate", GENERATE), ("rolling", ROLLING)):
        (tmp_path / f"{name}.yaml").write_text(text.format(folder=tmp_path))
    return tmp_path


def own_log_probs(engine: Engine, token_ids: list[int]) -> list[float]:
    model: Any = engine.models.target.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    model.set_attn_implementation(before)
    return [float(logits[place, token]) for place, token in enumerate(token_ids[1:])]


def test_scores_are_those_of_the_plain_model(engine: Engine) -> None:
    texts = [[5, 9, 3], list(range(3, 60)) * 2, [7]]
    for text, scores in zip(texts, engine.score(texts, batch_size=2), strict=True):
        assert scores.log_probs == pytest.approx(own_log_probs(engine, text), abs=1e-5)
        assert len(scores.is_best) == len(text) - 1
    with pytest.raises(CapacityError, match="has 129 tokens, but the model reads at most 128"):
        engine.score([[1] * 129])


def test_three_kinds_of_tasks_run_from_local_files(engine: Engine, folder: Path) -> None:
    from mtad.evaluation.harness import run_harness

    found = run_harness(
        engine,
        GenerationOptions(gamma=2, beam_width=2),
        ["tiny_choice", "tiny_generate", "tiny_rolling"],
        include_path=str(folder),
        batch_size=2,
    )
    assert 0 <= found["tiny_choice"]["acc,none"] <= 1
    assert found["tiny_generate"]["exact_match,none"] >= 0
    assert found["tiny_rolling"]["word_perplexity,none"] > 1


def test_the_model_does_what_the_harness_asks(engine: Engine) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from mtad.evaluation.harness import MtadLM

    assert get_model("mtad") is MtadLM
    model = MtadLM(engine, GenerationOptions(gamma=2, beam_width=2), batch_size="auto")

    def ask(kind: Any, *arguments: Any) -> Any:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    token_ids = model.tok_encode("the sea")
    (value, is_greedy), (longer, _) = model.loglikelihood(
        [ask("loglikelihood", "the", " sea"), ask("loglikelihood", "", "the sea")]
    )
    assert value == pytest.approx(sum(own_log_probs(engine, token_ids)[-4:]), abs=1e-5)
    assert longer == pytest.approx(sum(own_log_probs(engine, [model.eot_token_id, *token_ids])), abs=1e-5)
    assert isinstance(is_greedy, bool)
    (rolling,) = model.loglikelihood_rolling([ask("loglikelihood_rolling", "the sea")])
    assert rolling == pytest.approx(longer, abs=1e-5)
    requests = [
        ask("generate_until", "once", {"until": [" "], "max_gen_toks": 6}),
        ask("generate_until", "upon", {"do_sample": True, "temperature": 0.7, "max_gen_toks": 4}),
    ]
    texts = model.generate_until(requests)
    greedy = engine.generate("once", model.options, temperature=0.0, max_new_tokens=6, stop=(" ",))
    assert texts[0] == engine.generate([model.tok_encode("once")], greedy_options(model))[0].text
    assert len(texts) == 2
    assert greedy.stats.num_tokens <= 6


def greedy_options(model: Any) -> GenerationOptions:
    return GenerationOptions(gamma=2, beam_width=2, temperature=0.0, max_new_tokens=6, stop=(" ",))


def test_unknown_tasks_are_one_sentence(engine: Engine) -> None:
    from mtad.evaluation.harness import run_harness

    with pytest.raises(ConfigError, match="knows no task 'chess'"):
        run_harness(engine, GenerationOptions(), ["chess"])
