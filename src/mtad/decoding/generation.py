"""Runs a decoder over a batch until every answer has ended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from mtad.decoding.answers import AnswerBuilder, AnswerLimits, RunFacts
from mtad.decoding.decoder import Decoder
from mtad.decoding.text import Decode
from mtad.structures.results import Piece
from mtad.structures.rows import RowSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt of a batch: its index in the call, its token ids, its settings and what ends its answer."""

    row: int
    prompt: Sequence[int]
    settings: RowSettings
    limits: AnswerLimits


def generate_pieces(decoder: Decoder, requests: Sequence[Request], decode: Decode, facts: RunFacts) -> Iterator[Piece]:
    """Decode a batch and yield every iteration's pieces, rows in order.

    The last piece of a row carries its `GenerationResult`. Closing the iterator early stops the work. Rows that
    have ended leave the batch once half of it is idle; where iterations are captured, some of them stay, so that the
    number of rows is a power of two.

    Args:
        decoder: The method; its batch state is overwritten.
        requests: The prompts.
        decode: Turns token ids into text.
        facts: Method name and settings for the results.
    """
    builders = [
        AnswerBuilder(item.row, len(item.prompt), item.limits, decode, num_top=item.settings.top_logprobs)
        for item in requests
    ]
    started = perf_counter()
    decoder.prefill(
        [list(item.prompt) for item in requests],
        [item.settings for item in requests],
        [item.limits.max_new_tokens for item in requests],
    )
    prefilled = perf_counter()
    cache_bytes = decoder.cache_bytes
    while not all(builder.is_finished for builder in builders):
        builders = _drop_finished(decoder, builders)
        outcomes = decoder.step([not builder.is_finished for builder in builders])
        for builder, outcome in zip(builders, outcomes, strict=True):
            if outcome is None:
                continue
            piece = builder.take(outcome)
            if builder.is_finished:
                result = builder.result(
                    facts,
                    prefill_s=prefilled - started,
                    decode_s=perf_counter() - prefilled,
                    times=replace(decoder.times),
                    cache_bytes=max(cache_bytes, decoder.cache_bytes),
                    num_reused=0 if builder.row == requests[0].row else decoder.num_shared,
                )
                piece = replace(piece, result=result)
            yield piece


def _drop_finished(decoder: Decoder, builders: list[AnswerBuilder]) -> list[AnswerBuilder]:
    running = [row for row, builder in enumerate(builders) if not builder.is_finished]
    if len(running) * 2 > len(builders):
        return builders
    kept = running
    if decoder.is_captured:
        # Another number of rows is captured anew: few numbers, at the cost of some idle rows.
        idle = [row for row, builder in enumerate(builders) if builder.is_finished]
        kept = running + idle[: (1 << (len(running) - 1).bit_length()) - len(running)]
    decoder.select_rows(kept)
    return [builders[row] for row in kept]
