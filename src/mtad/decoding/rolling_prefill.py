"""Prompts are read in chunks between iterations, several rows at a time."""

from collections.abc import Callable

import torch

from mtad.decoding.cache_rows import CacheRows
from mtad.decoding.rolling_decoder import RollingDecoder
from mtad.decoding.seating import Place

_SMALLEST_SHARE = 32
"""Tokens of a row in a chunk that it shares: narrower ones would cost more calls than they save."""


@torch.inference_mode()
def read_chunk(rows: CacheRows, decoder_of: Callable[[int], RollingDecoder], budget: int) -> None:
    """Read the next tokens of some prompts, in one call of each model.

    The oldest prompt is always among them. Neighbours that use the same caches share the chunk in equal parts, so a
    short prompt is not kept waiting by a long one.

    Args:
        rows: The rows; what was read is noted there.
        decoder_of: The decoder of a ticket.
        budget: Tokens to read, padding included, at least 1.
    """
    chosen = _choose(rows, budget)
    if not chosen:
        return
    shares = [rows[row].num_unread for row in chosen]
    width = min(max(shares), max(budget // len(chosen), 1))
    counts = [min(share, width) for share in shares]
    starts = [rows[row].num_cached for row in chosen]
    tokens = [
        [*rows[row].prompt[start : start + count], *[0] * (width - count)]
        for row, start, count in zip(chosen, starts, counts, strict=True)
    ]
    ticket = rows[chosen[0]].ticket
    assert ticket is not None
    longest = max(start + count for start, count in zip(starts, counts, strict=True))
    for state in decoder_of(ticket).states:
        device = decoder_of(ticket).target.device
        state.use_rows(chosen[0], len(chosen), longest)
        state.prefill_chunk(torch.tensor(tokens, device=device), torch.tensor(counts, device=device), longest)
    for row, count in zip(chosen, counts, strict=True):
        rows[row].add_prompt(count)


def _choose(rows: CacheRows, budget: int) -> range:
    """Neighbouring rows that are being read from the same caches, the oldest request among them."""

    def is_open(row: int) -> bool:
        return rows[row].has_begun and rows[row].num_unread > 0

    block = rows.rows_of(Place.PREFILLING)
    oldest = min(filter(is_open, block), key=lambda row: rows[row].ticket or 0, default=None)
    if oldest is None:
        return range(0)
    first, last = oldest, oldest
    most = max(budget // _SMALLEST_SHARE, 1)

    def fits(row: int) -> bool:
        return row in block and is_open(row) and rows[row].caches == rows[oldest].caches and last - first + 1 < most

    while fits(last + 1):
        last += 1
    while fits(first - 1):
        first -= 1
    return range(first, last + 1)
