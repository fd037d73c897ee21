"""Pieces of an answer for those who wait in an event loop, and results in the order in which they were asked for."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from mtad.structures import GenerationResult, Piece


async def in_worker_thread(pieces: Generator[Piece, None, None]) -> AsyncGenerator[Piece, None]:
    """A stream whose every iteration runs in a worker thread; closing it stops the work and closes the stream."""
    step: asyncio.Future[Piece | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
            piece = await asyncio.shield(step)
            if piece is None:
                break
            yield piece
    finally:
        if step is not None:
            # A cancelled caller leaves its iteration running, and a running generator cannot be closed.
            await asyncio.gather(step, return_exceptions=True)
        pieces.close()


def in_order(
    found: Mapping[int, GenerationResult], prompts: str | Sequence[Any]
) -> GenerationResult | list[GenerationResult]:
    """Results by row in the order of the prompts; the only one for a text."""
    if isinstance(prompts, str):
        return found[0]
    return [found[row] for row in range(len(prompts))]
