"""Sessions of continuous batching: texts come out as they do alone."""

import gc
import random
from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_engine

from mtad.api import Engine
from mtad.config import GenerationOptions
from mtad.errors import CapacityError, ConfigError, MtadError, PromptError, UnsupportedOperationError
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import GenerationResult

KINDS: list[dict[str, Any]] = [
    {},
    {"method": "mtad", "gamma": 4, "temperature": 0.0},
    {"method": "speculative", "top_k": 0, "top_p": 1.0},
    {"method": "autoregressive", "temperature": 1.3},
    {"drafter": "early_exit", "gamma": 2},
    {"drafter": "prompt_lookup"},
    {"draft_length": "adaptive", "gamma": 4, "repetition_penalty": 1.2},
    {"logit_bias": ("5:-inf,9:2",), "threshold": 0.9},
    {"strict": ("code",), "draw": "gumbel", "stop": ("ab", "e")},
]


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


def drain(session: Any) -> dict[int, GenerationResult]:
    results = {}
    while session.num_waiting or session.num_running:
        results.update({piece.row: piece.result for piece in session.step() if piece.result})
    return results


def test_requests_of_all_kinds_get_the_texts_they_get_alone(engine: Engine) -> None:
    chance = random.Random(1)
    asked: dict[int, tuple[str, GenerationOptions]] = {}
    results: dict[int, GenerationResult] = {}
    with engine.session(max_rows=5, max_tokens=120, prefill_chunk=16) as session:
        for number in range(27):
            text = "".join(chance.choice("abcdefg hij") for _ in range(chance.randrange(1, 60)))
            options = GenerationOptions(
                seed=number, max_new_tokens=chance.randrange(1, 30), **KINDS[number % len(KINDS)]
            )
            asked[session.submit(text, options)] = text, options
            for _ in range(chance.randrange(3)):
                results.update({piece.row: piece.result for piece in session.step() if piece.result})
        results.update(drain(session))
    assert sorted(results) == sorted(asked)
    for ticket, (text, options) in asked.items():
        alone = engine.generate(text, options)
        assert results[ticket].token_ids == alone.token_ids
        assert results[ticket].text == alone.text
        assert results[ticket].finish_reason == alone.finish_reason
        assert results[ticket].config == alone.config
        assert results[ticket].stats.acceptance_by_depth == alone.stats.acceptance_by_depth
        assert results[ticket].log_probs == pytest.approx(alone.log_probs, abs=1e-9)


def test_the_engine_is_busy_until_the_session_is_closed(engine: Engine) -> None:
    session = engine.session(2)
    with pytest.raises(MtadError, match="already decoding"):
        engine.generate("a", max_new_tokens=2)
    with pytest.raises(MtadError, match="already decoding"):
        engine.session()
    session.close()
    session.close()
    assert engine.generate("a", max_new_tokens=2).token_ids
    for call in (session.step, lambda: session.submit("a"), lambda: session.cancel(0)):
        with pytest.raises(MtadError, match="closed"):
            call()


def test_requests_are_checked_when_they_are_submitted(engine: Engine) -> None:
    with engine.session(max_rows=1, max_tokens=40, max_waiting=2) as session:
        with pytest.raises(PromptError):
            session.submit([])
        with pytest.raises(CapacityError, match="holds at most 40"):
            session.submit("a" * 40)
        with pytest.raises(ConfigError):
            session.submit("a", GenerationOptions(verifier="block"))
        with pytest.raises(ConfigError, match="logit_bias"):
            session.submit("a", GenerationOptions(logit_bias=("999:1",)))
        with pytest.raises(UnsupportedOperationError):
            session.submit("a", GenerationOptions(method="beam_sampling"))
        assert session.num_waiting == 0
        assert session.submit("a" * 15) == 0
        session.submit("b")
        with pytest.raises(CapacityError, match="max_waiting is 2"):
            session.submit("c")
        results = drain(session)
        assert len(results[0].token_ids) <= 40 - results[0].stats.num_prompt_tokens


@pytest.mark.parametrize("method", ["mmtad", "autoregressive"])
def test_in_a_list_the_next_prompt_begins_where_an_answer_has_ended(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    calls: list[int] = []
    target = engine.models.target
    score_tree = target.score_tree

    def counted(*arguments: Any) -> Any:
        calls.append(0)
        return score_tree(*arguments)

    monkeypatch.setattr(target, "score_tree", counted)
    prompts = ["abc" * (1 + number % 4) for number in range(13)]
    stops: dict[str, Any] = {"stop": ("a", "e"), "max_new_tokens": 40, "method": method}
    together = engine.generate(prompts, batch_size=4, **stops)
    num_rolled = len(calls)
    in_batches = [
        result for start in range(0, 13, 4) for result in engine.generate(prompts[start : start + 4], **stops)
    ]
    assert num_rolled < len(calls) - num_rolled
    assert [result.text for result in together] == [result.text for result in in_batches]
    assert [result.token_ids for result in together] == [result.token_ids for result in in_batches]
    stream = engine.stream(prompts, batch_size=2)
    next(stream)
    with pytest.raises(MtadError, match="already decoding"):
        engine.generate("a")
    stream.close()
    assert engine.generate("a", max_new_tokens=1).token_ids


@pytest.mark.parametrize("setting", [{"max_rows": 0}, {"max_tokens": 1}, {"prefill_chunk": 0}, {"max_waiting": -1}])
def test_sizes_out_of_bounds_are_refused(engine: Engine, setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        engine.session(**setting)
    assert engine.generate("a", max_new_tokens=1).token_ids


def test_counts_follow_the_requests(engine: Engine) -> None:
    with engine.session(max_rows=2, max_tokens=100) as session:
        assert session.capacity_tokens == 200
        assert session.step() == []
        for _ in range(3):
            session.submit("abc def", GenerationOptions(max_new_tokens=12, ignore_eos=True))
        assert (session.num_waiting, session.num_running, session.cached_tokens) == (3, 0, 0)
        session.step()
        assert (session.num_waiting, session.num_running) == (1, 2)
        assert session.cached_tokens > 2 * 7
        results = drain(session)
        session.step()
        assert (session.num_waiting, session.num_running, session.cached_tokens) == (0, 0, 0)
        assert all(result.stats.cache_bytes > 0 for result in results.values())


def test_a_session_follows_a_batch_of_its_size(engine: Engine) -> None:
    engine.generate(["a", "b"], max_new_tokens=2)
    with engine.session(max_rows=2, max_tokens=100) as session:
        session.submit("abc", GenerationOptions(max_new_tokens=3))
        drain(session)
    engine.generate(["a", "b"], max_new_tokens=2)


def test_memory_is_given_back(engine: Engine) -> None:
    with engine.session(max_rows=2, max_tokens=100) as session:
        session.submit("abc", GenerationOptions(max_new_tokens=3))
        drain(session)
        assert engine.models.target.cache_bytes > 0
    assert engine.models.target.cache_bytes == 0
    assert engine.models.draft is not None
    assert engine.models.draft.cache_bytes == 0


def test_a_step_that_fails_leaves_a_session_that_can_be_closed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = engine.session(max_rows=2, max_tokens=100)
    session.submit("abc", GenerationOptions(max_new_tokens=30, ignore_eos=True))
    session.step()

    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.models.target, "score_tree", fail)
        with pytest.raises(CapacityError, match="out of memory"):
            session.step()
    with pytest.raises(MtadError, match="has failed"):
        session.step()
    session.close()
    assert engine.generate("abc", max_new_tokens=3).token_ids


def test_many_requests_leave_nothing_behind(engine: Engine) -> None:
    chance = random.Random(2)
    num_tensors = []
    with engine.session(max_rows=6, max_tokens=100, prefill_chunk=24) as session:
        for wave in range(12):
            for number in range(25):
                options = GenerationOptions(seed=number, max_new_tokens=chance.randrange(1, 9), **KINDS[number % 3])
                ticket = session.submit("".join(chance.choices("abcdef ", k=chance.randrange(1, 40))), options)
                if chance.random() < 0.2:
                    session.cancel(chance.randrange(ticket + 1))
                if chance.random() < 0.3:
                    session.step()
            drain(session)
            session.step()
            assert (session.num_waiting, session.num_running, session.cached_tokens) == (0, 0, 0)
            gc.collect()
            if wave >= 5:
                num_tensors.append(sum(type(item) is torch.Tensor for item in gc.get_objects()))
    assert max(num_tensors) - min(num_tensors) <= 40, "buffers for every number of rows, and no more"


@pytest.mark.parametrize("method", ["mmtad", "mtad", "speculative", "autoregressive"])
def test_the_best_tokens_are_those_of_the_target(engine: Engine, method: str) -> None:
    result = engine.generate(["abc def"], method=method, top_logprobs=4, max_new_tokens=20, seed=3, ignore_eos=True)[0]
    assert len(result.top_log_probs) == len(result.token_ids) == 20
    target = engine.models.target
    assert isinstance(target, TransformersRunner)
    model = target.model
    prompt = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": "abc def"}], add_generation_prompt=True, return_dict=False
    )
    found = result.stats.num_prompt_tokens
    assert found == len(prompt)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *result.token_ids]]), use_cache=False).logits[0]
    laws = logits[found - 1 : -1].log_softmax(-1)
    for law, token, log_prob, best in zip(laws, result.token_ids, result.log_probs, result.top_log_probs, strict=True):
        values, tokens = law.topk(4)
        assert [number for number, _ in best] == tokens.tolist()
        assert [value for _, value in best] == pytest.approx(values.tolist(), abs=1e-9)
        assert log_prob == pytest.approx(float(law[token]), abs=1e-9)


def test_nothing_is_reported_unasked(engine: Engine) -> None:
    assert engine.generate("abc", max_new_tokens=4).top_log_probs == ()
    with pytest.raises(ConfigError, match="top_logprobs"):
        engine.generate("abc", method="beam_sampling", top_logprobs=2)
    with pytest.raises(ConfigError, match="top_logprobs must be a whole number >= 0 and <= 20"):
        GenerationOptions(top_logprobs=21)
