"""Exhausted memory says what was asked for and what to lower."""

from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_engine
from tests.tiny_models import tiny_model

from mtad.api import Engine
from mtad.api.memory import CacheSize, memory_errors
from mtad.config import GenerationOptions
from mtad.errors import CapacityError, spell_bytes
from mtad.models.transformers_runner import TransformersRunner

PROMPT = [5, 6, 7, 8]
# Keys and values of two layers, two key heads of eight numbers each, in float64; target and draft.
TOKEN_BYTES = 2 * 2 * 2 * 8 * 8 * 2


def _fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to")


def test_the_size_of_a_cache_is_that_of_its_tensors() -> None:
    runner = TransformersRunner(tiny_model("llama"))
    runner.attach()
    runner.allocate(3, 39)
    runner.prefill(torch.ones(3, 6, dtype=torch.int64), torch.tensor([5, 5, 5]))
    size = CacheSize.of([runner, runner], 3, runner.num_slots)
    assert size.num_bytes == runner.cache_bytes


@pytest.mark.parametrize("place", ["forward", "score_tree"])
@pytest.mark.parametrize("count", [1, 3])
def test_prefill_and_decoding_name_rows_tokens_and_bytes(
    engine: Engine, place: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.models.target, place, _fail)
    rows = min(count, 2)
    wanted = f"{rows} rows of 24 tokens need {spell_bytes(rows * 24 * TOKEN_BYTES)} for the caches"
    with pytest.raises(CapacityError, match="lower --batch-size, --max-new-tokens") as caught:
        engine.generate([PROMPT] * count, max_new_tokens=20, batch_size=2)
    assert wanted in str(caught.value)


def test_a_cache_that_cannot_be_had_names_its_bytes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(engine.models.target), "_allocate_slots", _fail)
    with pytest.raises(CapacityError, match=r"no memory for a cache of 1 rows of \d+ tokens \(\d+\.\d kB\); lower"):
        tiny_engine().generate([PROMPT], max_new_tokens=20)


def test_a_session_knows_what_it_takes_and_says_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.session(max_rows=4, max_tokens=60) as session:
        assert session.cache_size == CacheSize(num_rows=4, num_tokens=60, num_bytes=4 * 60 * TOKEN_BYTES)
        session.submit(PROMPT, GenerationOptions(max_new_tokens=5))
        with monkeypatch.context() as patch:
            patch.setattr(engine.models.target, "forward", _fail)
            with pytest.raises(CapacityError, match="4 rows of 60 tokens need"):
                session.step()


def test_without_numbers_the_sentence_stands_alone() -> None:
    with pytest.raises(CapacityError, match=r"or shorten the prompts$"), memory_errors():
        raise MemoryError


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1200, "1.2 kB"), (1_234_567_890, "1.2 GB"), (5 * 10**15, "5,000.0 TB")],
)
def test_bytes_are_spelled_for_people(count: int, text: str) -> None:
    assert spell_bytes(count) == text
