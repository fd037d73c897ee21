"""Continuous batching: requests join and leave between iterations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch

from mtad.config import GenerationOptions
from mtad.decoding.answers import AnswerBuilder, RunFacts
from mtad.decoding.cache_rows import CacheRows
from mtad.decoding.generation import Request
from mtad.decoding.outcome import PhaseTimes, RowOutcome
from mtad.decoding.rolling_decoder import RollingDecoder
from mtad.decoding.rolling_prefill import read_chunk
from mtad.decoding.rolling_shelf import BatchRoom, RollingShelf
from mtad.decoding.seating import Place
from mtad.decoding.text import Decode
from mtad.structures.results import Piece

_MAX_IDLE_DECODERS = 8


@dataclass(slots=True)
class _Ride:
    """One request on its way; times are readings of `perf_counter`, 0 before they are taken."""

    request: Request
    decoder: RollingDecoder
    facts: RunFacts
    builder: AnswerBuilder
    explains: bool
    admitted: float = 0.0
    seated: float = 0.0
    times: PhaseTimes = field(default_factory=PhaseTimes)
    num_reused: int = 0


class RollingBatch:
    """Requests of any drafter and rule of the common loop, over one set of caches.

    Every request has a row of each cache it needs. Requests of one decoder share its iterations; decoders take turns
    within a step. A request is admitted as soon as a row is free, in the order of submission; its prompt is read in
    chunks beside the others' iterations, without the tokens that another row has cached already.

    Args:
        shelf: Builds the decoders; its caches have `room`.
        room: Rows, and tokens in a chunk of prompts.
        decode: Turns token ids into text.
    """

    def __init__(self, shelf: RollingShelf, room: BatchRoom, decode: Decode) -> None:
        self._shelf = shelf
        self._room = room
        self._decode = decode
        self._rows = CacheRows(room.max_rows)
        self._waiting: dict[int, _Ride] = {}
        self._riding: dict[int, _Ride] = {}
        self._pieces: list[Piece] = []

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with a row whose answer has not ended."""
        return sum(not ride.builder.is_finished for ride in self._riding.values())

    @property
    def num_cached(self) -> int:
        """Tokens that the rows of running requests hold."""
        return self._rows.num_held

    def submit(
        self, request: Request, options: GenerationOptions, *, config: dict[str, Any], explains: bool = False
    ) -> None:
        """Queue a request.

        Args:
            request: Its `row` is the ticket, higher than all before it.
            options: Resolved settings.
            config: What results keep of them.
            explains: Attach a `StepExplanation` to its pieces.

        Raises:
            ConfigError: The settings do not fit each other or the models.
            UnsupportedOperationError: The method has a decoder of its own.
        """
        decoder = self._shelf.decoder(options, request)
        self._rows.open(decoder)
        num_top = request.settings.top_logprobs
        builder = AnswerBuilder(request.row, len(request.prompt), request.limits, self._decode, num_top=num_top)
        facts = RunFacts(method=options.method, config=config, gamma=decoder.gamma)
        self._waiting[request.row] = _Ride(request, decoder, facts, builder, explains)
        self._drop_idle_decoders()

    def check(self, request: Request, options: GenerationOptions) -> None:
        """Raise what `submit` would, queueing nothing."""
        self._rows.open(self._shelf.decoder(options, request))
        self._drop_idle_decoders()

    def cancel(self, ticket: int) -> None:
        """End a request where it stands; one that has ended is left alone."""
        ride = self._waiting.pop(ticket, None) or self._riding.get(ticket)
        if ride is not None and not ride.builder.is_finished:
            self._add_piece(ride, ride.builder.cancel())

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """One iteration of everything that runs, behind one chunk of the prompts that are to be read."""
        self._retire()
        self._admit()
        self._read_prompts()
        for decoder in self._shelf.decoders:
            self._arrange(decoder)
            self._iterate(decoder)
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> None:
        """Forget all requests and give the memory back."""
        self._waiting, self._riding, self._pieces = {}, {}, []
        self._rows = CacheRows(self._room.max_rows)
        self._shelf.release()

    def _retire(self) -> None:
        """Free the rows of answers that have ended."""
        ended = [ticket for ticket, ride in self._riding.items() if ride.builder.is_finished]
        for ticket in [ticket for ticket in ended if not self._may_stay(self._riding[ticket])]:
            self._land()
            self._rows.leave(ticket)
            del self._riding[ticket]

    def _may_stay(self, ride: _Ride) -> bool:
        """Whether an ended row rests in its batch: where another shape costs more than the row, and nobody waits."""
        decoder = ride.decoder
        is_wanted = self._waiting or self._rows.rows_of(Place.PREFILLING)
        if not ride.seated or is_wanted or not decoder.is_replayed:
            return False
        rides = [self._riding.get(request.row) for request in decoder.seated]
        running = sum(other is not None and not other.builder.is_finished for other in rides)
        return running * 2 > len(decoder.seated)

    def _admit(self) -> None:
        for ticket, ride in list(self._waiting.items()):
            if not self._rows.rows_of(Place.FREE):
                break
            self._land()
            caches = [state.storage for state in ride.decoder.states]
            self._rows.take(ticket, ride.request.prompt, caches)
            self._riding[ticket] = self._waiting.pop(ticket)
            ride.admitted = perf_counter()

    def _read_prompts(self) -> None:
        """One chunk; whose prompt is there joins the iterations."""
        for ticket in sorted(self._rows.tickets_of(Place.PREFILLING)):
            row = self._rows[self._rows.row_of(ticket)]
            if not row.has_begun and not self._rows.must_wait(ticket):
                ride = self._riding[ticket]
                ride.num_reused = self._rows.begin(ticket, ride.decoder.states)
        read_chunk(self._rows, lambda ticket: self._riding[ticket].decoder, self._room.prefill_chunk)
        for ticket in sorted(self._rows.tickets_of(Place.PREFILLING)):
            row = self._rows[self._rows.row_of(ticket)]
            if row.has_begun and row.num_unread == 0:
                self._seat(self._riding[ticket])

    def _seat(self, ride: _Ride) -> None:
        self._land()
        ticket = ride.request.row
        self._rows.move(ticket, ride.decoder)
        self._rows[self._rows.row_of(ticket)].add_answer(ride.request.prompt[-1:])
        ride.seated, ride.times = perf_counter(), replace(ride.decoder.times)

    def _arrange(self, decoder: RollingDecoder) -> None:
        """Tell a decoder which rows are its own, if that has changed."""
        rows, free = self._rows.rows_of(decoder), self._rows.rows_of(Place.FREE)
        if not rows:
            decoder.seated = ()
            return
        num_places = len(rows)
        if decoder.loop is not None and rows.stop == free.start:
            padded = 1 << (num_places - 1).bit_length()
            num_places = padded if rows.start + padded <= free.stop else num_places
        tickets = self._rows.tickets_of(decoder)
        seating = ([request.row for request in decoder.seated], decoder.first_row, decoder.num_places)
        if seating != (tickets, rows.start, num_places):
            self._land()
            decoder.arrange([self._riding[ticket].request for ticket in tickets], rows.start, num_places)

    def _iterate(self, decoder: RollingDecoder) -> None:
        rides = [self._riding[request.row] for request in decoder.seated]
        active = [not ride.builder.is_finished for ride in rides]
        if not any(active):
            return
        explains = any(ride.explains and is_active for ride, is_active in zip(rides, active, strict=True))
        decoder.observer = self._shelf.explainer(decoder) if explains else None
        decoder.take_turn()
        self._take(decoder, decoder.step(active + [False] * (decoder.num_places - len(active))))
        self._shelf.explainer(decoder).forget()

    def _land(self) -> None:
        """Take what iterations started ahead have brought, before any row moves."""
        for decoder in self._shelf.decoders:
            outcomes = decoder.land()
            if outcomes is not None:
                self._take(decoder, outcomes)

    def _take(self, decoder: RollingDecoder, outcomes: Sequence[RowOutcome | None]) -> None:
        for place, (request, outcome) in enumerate(zip(decoder.seated, outcomes, strict=False)):
            ride = self._riding[request.row]
            if outcome is None or ride.builder.is_finished:
                continue
            is_drafted = outcome.guarded_depth != 0
            self._rows[decoder.first_row + place].add_answer(outcome.tokens, is_drafted=is_drafted)
            step = self._shelf.explainer(decoder).take(place) if ride.explains else None
            self._add_piece(ride, replace(ride.builder.take(outcome), step=step))

    def _add_piece(self, ride: _Ride, piece: Piece) -> None:
        """Queue a piece; the last one of an answer brings the result."""
        if ride.builder.is_finished:
            now = perf_counter()
            read = ride.seated or now
            result = ride.builder.result(
                ride.facts,
                prefill_s=read - ride.admitted if ride.admitted else 0.0,
                decode_s=now - read,
                times=ride.decoder.times.since(ride.times) if ride.seated else PhaseTimes(),
                cache_bytes=self._shelf.cache_bytes,
                num_reused=ride.num_reused,
            )
            piece = replace(piece, result=result)
        self._pieces.append(piece)

    def _drop_idle_decoders(self) -> None:
        """Forget the oldest decoders that no request needs, once there are many."""
        busy = {id(ride.decoder) for ride in (*self._waiting.values(), *self._riding.values())}
        idle = [decoder for decoder in self._shelf.decoders if id(decoder) not in busy]
        for decoder in idle[: max(len(idle) - _MAX_IDLE_DECODERS, 0)]:
            self._rows.close(decoder)
            self._shelf.drop(decoder)


def roll_requests(
    batch: RollingBatch, requests: Sequence[Request], options: GenerationOptions, config: dict[str, Any]
) -> Iterator[Piece]:
    """Decode a list of requests; whoever ends makes room for the next one. Closing the iterator stops the work.

    Args:
        batch: Has no requests yet; closed at the end.
        requests: Numbered upwards.
        options: Resolved settings of all.
        config: What results keep of them.
    """
    try:
        for request in requests:
            batch.submit(request, options, config=config)
        while batch.num_waiting or batch.num_running:
            yield from batch.step()
    finally:
        batch.close()
