"""The engine on tiny models: every way in, every way out, and every way to stop."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny_engine import MAX_POSITIONS, SPECIAL_TOKENS, tiny_engine
from tests.tiny_models import EOS

from mtad import GenerationOptions, GenerationResult, Piece, PromptFormat
from mtad.api import Engine
from mtad.config import METHOD_NAMES
from mtad.errors import CapacityError, ConfigError, MtadError, PromptError
from mtad.models.loading import SamplingDefaults

PROMPTS = ("tell me", "a", "why is the sky blue? say it in one line, please")
SHORT: dict[str, Any] = {"max_new_tokens": 12, "gamma": 3, "beam_width": 2, "search_budget": 100_000}


def essence(result: GenerationResult) -> tuple[Any, ...]:
    return result.text, result.token_ids, result.provenance, result.accepted_lengths, result.finish_reason


def joined(pieces: Sequence[Piece], row: int = 0) -> tuple[Any, ...]:
    mine = [piece for piece in pieces if piece.row == row]
    return (
        "".join(piece.text for piece in mine),
        tuple(token for piece in mine for token in piece.token_ids),
        tuple(origin for piece in mine for origin in piece.provenance),
        tuple(value for piece in mine for value in piece.log_probs),
    )


def test_one_text_gives_one_result_and_a_list_gives_a_list(engine: Engine) -> None:
    single = engine.generate("tell me", **SHORT)
    listed = engine.generate(["tell me"], **SHORT)
    assert isinstance(single, GenerationResult)
    assert isinstance(listed, list)
    assert essence(single) == essence(listed[0])
    assert engine.generate([]) == []


def test_texts_token_ids_and_conversations_agree(engine: Engine) -> None:
    text = "user: hi\nassistant: "
    token_ids = engine.tokenizer(text)["input_ids"]
    raw = engine.generate([text], style=PromptFormat(is_chat=False), **SHORT)
    others = engine.generate(["hi", token_ids, [{"role": "user", "content": "hi"}]], **SHORT)
    assert [essence(result) for result in others] == [essence(raw[0])] * 3


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_answers_with_whole_bookkeeping(engine: Engine, method: str) -> None:
    result = engine.generate("tell me", method=method, ignore_eos=True, **SHORT)
    stats = result.stats
    assert result.method == method
    assert len(result.token_ids) == len(result.provenance) == len(result.log_probs) == stats.num_tokens == 12
    assert result.finish_reason == "length"
    assert result.text == engine.tokenizer.decode(result.token_ids, skip_special_tokens=True)
    assert stats.num_prompt_tokens == len("user: tell me\nassistant: ")
    assert stats.tokens_per_call == pytest.approx(stats.num_tokens / stats.target_calls)
    assert stats.perplexity == pytest.approx(torch.tensor(result.log_probs).mul(-1).mean().exp().item())
    assert sum(result.accepted_lengths) == result.provenance.count("drafted")


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_log_probs_are_those_of_the_plain_model(engine: Engine, method: str) -> None:
    prompt = [1, 5, 9, 12]
    result = engine.generate([prompt], method=method, ignore_eos=True, **SHORT)[0]
    sequence = torch.tensor([[*prompt, *result.token_ids]])
    target = engine.models.target
    target.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        log_probs = target.model(sequence).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    target.attach()
    expected = log_probs.gather(1, sequence[0, len(prompt) :, None]).squeeze(1)
    assert torch.tensor(result.log_probs, dtype=torch.float64) == pytest.approx(expected, abs=1e-5)


def test_drafted_and_target_tokens_both_occur(engine: Engine) -> None:
    result = engine.generate("tell me", max_new_tokens=40, ignore_eos=True)
    assert set(result.provenance) == {"drafted", "target"}
    assert result.stats.tokens_per_call > 1
    assert len(result.stats.acceptance_by_depth) == GenerationOptions().gamma


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_pieces_of_a_stream_add_up_to_the_results(engine: Engine, method: str) -> None:
    pieces = list(engine.stream(PROMPTS, method=method, **SHORT))
    for row in range(len(PROMPTS)):
        last = [piece for piece in pieces if piece.row == row][-1]
        assert last.result is not None
        assert joined(pieces, row) == (
            last.result.text,
            last.result.token_ids,
            last.result.provenance,
            last.result.log_probs,
        )
        assert last.finish_reason == last.result.finish_reason
    assert sum(piece.result is not None for piece in pieces) == len(PROMPTS)
    assert all("".join(text for text, _ in piece.segments) == piece.text for piece in pieces)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_batch_answers_as_its_prompts_do_alone(engine: Engine, method: str, temperature: float) -> None:
    settings = SHORT | {"method": method, "temperature": temperature, "seed": 3}
    alone = [engine.generate(prompt, **settings) for prompt in PROMPTS]
    for batch_size in (1, 2, 8):
        together = engine.generate(list(PROMPTS), batch_size=batch_size, **settings)
        assert [essence(result) for result in together] == [essence(result) for result in alone]


def test_a_seed_repeats_a_run_and_another_one_changes_it(engine: Engine) -> None:
    first, again, other = (
        engine.generate("tell me", seed=seed, method="autoregressive", ignore_eos=True, max_new_tokens=30)
        for seed in (1, 1, 2)
    )
    assert essence(first) == essence(again)
    assert first.token_ids != other.token_ids


def test_an_answer_ends_before_a_stop_string(engine: Engine) -> None:
    whole = engine.generate("tell me", temperature=0, ignore_eos=True, max_new_tokens=30)
    for length in (1, 3):
        stop = whole.text[10 : 10 + length]
        result = engine.generate("tell me", temperature=0, ignore_eos=True, max_new_tokens=30, stop=(stop,))
        assert result.text == whole.text[: whole.text.index(stop)]
        assert result.finish_reason == "stop"
        assert result.stats.num_tokens <= whole.text.index(stop) + length


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_an_answer_is_never_longer_than_asked_for(engine: Engine, method: str, limit: int) -> None:
    settings = SHORT | {"max_new_tokens": limit, "method": method}
    result = engine.generate("tell me", ignore_eos=True, **settings)
    assert len(result.token_ids) == limit
    assert result.finish_reason == "length"


def test_an_answer_ends_at_the_end_of_text_token() -> None:
    plain = tiny_engine(defaults=SamplingDefaults())
    whole = plain.generate("tell me", temperature=0, max_new_tokens=30)
    end = whole.token_ids[7]
    engine = tiny_engine(defaults=SamplingDefaults(eos_token_ids=frozenset({EOS, end})))
    result = engine.generate("tell me", temperature=0, max_new_tokens=30)
    length = whole.token_ids.index(end) + 1
    assert result.token_ids == whole.token_ids[:length]
    assert result.finish_reason == "stop"
    assert engine.generate("tell me", temperature=0, max_new_tokens=30, ignore_eos=True).token_ids == whole.token_ids


def test_a_prompt_beyond_the_models_positions_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(CapacityError, match=rf"prompt 2 has {MAX_POSITIONS} tokens.* at most {MAX_POSITIONS}"):
        engine.stream([[5], [5] * MAX_POSITIONS])


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("room", [1, 3])
def test_an_answer_is_capped_at_the_models_positions(engine: Engine, method: str, room: int) -> None:
    settings = SHORT | {"max_new_tokens": 100, "method": method}
    result = engine.generate([[5] * (MAX_POSITIONS - room)], ignore_eos=True, **settings)[0]
    assert len(result.token_ids) == room
    assert result.finish_reason == "length"


def test_open_sampling_settings_come_from_the_model_else_from_mtad() -> None:
    silent = tiny_engine().resolve(GenerationOptions())
    assert (silent.temperature, silent.top_k, silent.top_p) == (1.0, 10, 0.9)
    stated = SamplingDefaults(temperature=0.6, top_k=0, top_p=1.0)
    engine = tiny_engine(defaults=stated)
    resolved = engine.resolve(GenerationOptions())
    assert (resolved.temperature, resolved.top_k, resolved.top_p) == (0.6, 0, 1.0)
    asked = engine.resolve(GenerationOptions(temperature=0.0, top_k=5, top_p=0.5))
    assert (asked.temperature, asked.top_k, asked.top_p) == (0.0, 5, 0.5)


def test_a_result_carries_every_resolved_setting(engine: Engine) -> None:
    options = GenerationOptions(max_new_tokens=2, gamma=2)
    result = engine.generate("tell me", options, threshold=0.25)
    assert result.config == engine.settings_record(GenerationOptions(max_new_tokens=2, gamma=2, threshold=0.25))
    assert result.config["temperature"] == 1.0
    assert result.config["models"]["target"] == "tiny"
    assert result.to_dict()["stats"]["num_tokens"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gama": 3}, "unknown setting 'gama' in generate"),
        ({"gamma": 0}, "gamma must be"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"method": "mtjd", "drafter": "chain"}, "mtjd takes no drafter"),
    ],
)
def test_bad_settings_are_refused_before_the_first_token(engine: Engine, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.stream("tell me", **changes)


def test_a_bad_prompt_is_refused_before_the_first_token(engine: Engine) -> None:
    with pytest.raises(PromptError):
        engine.stream(["fine", ""])


def test_a_method_that_drafts_needs_a_draft() -> None:
    engine = tiny_engine(has_draft=False)
    with pytest.raises(ConfigError, match="needs a draft model"):
        engine.generate("tell me")
    assert engine.generate("tell me", method="autoregressive", max_new_tokens=2).stats.num_tokens == 2


def test_a_second_stream_waits_for_the_first_to_be_closed(engine: Engine) -> None:
    first = engine.stream("tell me", **SHORT)
    next(first)
    with pytest.raises(MtadError, match="already decoding; finish or close the other stream"):
        engine.generate("a", **SHORT)
    first.close()
    assert engine.generate("a", **SHORT).stats.num_tokens > 0


def test_a_finished_or_failed_stream_frees_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    list(engine.stream("tell me", **SHORT))
    with monkeypatch.context() as patch:
        patch.setattr(engine.models.target, "score_tree", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate("tell me", **SHORT)
    assert engine.generate("tell me", **SHORT).stats.num_tokens > 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_exhausted_memory_is_one_sentence(engine: Engine, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine.models.target, "score_tree", fail)
    with pytest.raises(CapacityError, match="out of memory while decoding; lower --batch-size"):
        engine.generate("tell me", **SHORT)


def test_another_runtime_error_stays_what_it_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(engine.models.target, "score_tree", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        engine.generate("tell me", **SHORT)


def test_special_tokens_are_left_out_of_the_text(engine: Engine) -> None:
    text = engine.generate("tell me", ignore_eos=True, temperature=5.0, top_k=0, top_p=1.0, max_new_tokens=60).text
    assert not any(token in text for token in SPECIAL_TOKENS)
