"""The engine's coroutines: the same answers, and a cancelled call that lets go of the engine."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from mtad import GenerationResult, Piece
from mtad.api import Engine
from mtad.errors import ConfigError, MtadError

SHORT: dict[str, Any] = {"max_new_tokens": 12, "gamma": 3, "beam_width": 2}


def test_generate_async_answers_as_generate_does(engine: Engine) -> None:
    async def both() -> tuple[Any, Any]:
        return await engine.generate_async("tell me", **SHORT), await engine.generate_async(["tell me", "a"], **SHORT)

    single, listed = asyncio.run(both())
    assert isinstance(single, GenerationResult)
    assert single.token_ids == engine.generate("tell me", **SHORT).token_ids
    assert [item.token_ids for item in listed] == [
        item.token_ids for item in engine.generate(["tell me", "a"], **SHORT)
    ]


def test_stream_async_yields_what_stream_does(engine: Engine) -> None:
    async def collect() -> list[Piece]:
        return [piece async for piece in engine.stream_async("tell me", **SHORT)]

    expected = list(engine.stream("tell me", **SHORT))
    assert [piece.token_ids for piece in asyncio.run(collect())] == [piece.token_ids for piece in expected]


def test_an_error_reaches_the_caller(engine: Engine) -> None:
    with pytest.raises(ConfigError):
        asyncio.run(engine.generate_async("tell me", gamma=0))


def test_closing_a_stream_early_frees_the_engine(engine: Engine) -> None:
    async def leave() -> None:
        async with aclosing(engine.stream_async("tell me", **SHORT)) as pieces:
            async for _ in pieces:
                break

    asyncio.run(leave())
    assert engine.generate("a", **SHORT).stats.num_tokens > 0


def test_a_second_stream_is_refused(engine: Engine) -> None:
    async def overlap() -> None:
        async with aclosing(engine.stream_async("tell me", **SHORT)) as first:
            await anext(first)
            with pytest.raises(MtadError, match="already decoding"):
                await engine.generate_async("a", **SHORT)

    asyncio.run(overlap())


def test_a_cancelled_call_stops_the_work_and_frees_the_engine(engine: Engine) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(engine.generate_async("tell me", max_new_tokens=80, ignore_eos=True))
        while not engine._lock.locked():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine._lock.locked()

    asyncio.run(cancel())
    assert engine.generate("a", **SHORT).stats.num_tokens > 0
