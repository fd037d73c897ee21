"""Running a decoder over a batch until every answer has ended."""

import pytest
from tests.table_models import ALL_METHODS, Run, letters, random_table

from mtad.decoding import AnswerLimits, Decoder, Request, RunFacts, generate_pieces
from mtad.structures import Piece, RowSettings

PROMPTS = [[1], [2, 3], [0, 1, 2], [3] * 7]
LIMITS = [3, 11, 2, 8]


def run(method: str) -> Run:
    return Run(random_table(1, 5, 2), random_table(2, 5, 2), {"method": method, "gamma": 3, "beam_width": 3})


def requests(stop: tuple[str, ...] = ()) -> list[Request]:
    return [
        Request(
            row=10 + row,
            prompt=prompt,
            settings=RowSettings(seed=row),
            limits=AnswerLimits(max_new_tokens=limit, eos_token_ids=frozenset(), stop=stop),
        )
        for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True))
    ]


def pieces(decoder: Decoder, stop: tuple[str, ...] = ()) -> list[Piece]:
    return list(generate_pieces(decoder, requests(stop), letters, RunFacts(method="any", gamma=decoder.gamma)))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_pieces_add_up_to_the_result(method: str) -> None:
    by_row: dict[int, list[Piece]] = {}
    for piece in pieces(run(method).decoder()):
        by_row.setdefault(piece.row, []).append(piece)
    assert sorted(by_row) == [10, 11, 12, 13]
    for row, limit in zip(range(10, 14), LIMITS, strict=True):
        *earlier, last = by_row[row]
        assert all(piece.result is None and piece.finish_reason is None for piece in earlier)
        assert last.result is not None
        assert last.finish_reason == last.result.finish_reason == "length"
        whole = [*earlier, last]
        assert "".join(piece.text for piece in whole) == last.result.text
        assert tuple(token for piece in whole for token in piece.token_ids) == last.result.token_ids
        assert tuple(name for piece in whole for name in piece.provenance) == last.result.provenance
        assert tuple(value for piece in whole for value in piece.log_probs) == last.result.log_probs
        assert all("".join(text for text, _ in piece.segments) == piece.text for piece in whole)
        assert len(last.result.token_ids) == limit
        assert last.result.stats.num_prompt_tokens == len(PROMPTS[row - 10])


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_decoder_can_be_used_again(method: str) -> None:
    decoder = run(method).decoder()
    first, second = pieces(decoder), pieces(decoder)
    assert [piece.token_ids for piece in first] == [piece.token_ids for piece in second]


@pytest.mark.parametrize("method", ALL_METHODS)
def test_times_belong_to_one_batch(method: str) -> None:
    decoder = run(method).decoder()
    for _ in range(3):
        for piece in pieces(decoder):
            if piece.result is not None:
                stats = piece.result.stats
                assert stats.draft_s + stats.verify_s <= stats.decode_s


def test_stop_strings_end_rows_one_by_one() -> None:
    decoder = run("mtad").decoder()
    plain = {piece.row: piece.result for piece in pieces(decoder) if piece.result}
    for piece in pieces(decoder, stop=("aa", "d")):
        if piece.result is None:
            continue
        unstopped = plain[piece.row]
        assert unstopped is not None
        length = len(piece.result.token_ids)
        assert piece.result.token_ids == unstopped.token_ids[:length]
        assert unstopped.text.startswith(piece.result.text)
        is_cut = any(word in letters(piece.result.token_ids) for word in ("aa", "d"))
        assert (piece.result.finish_reason == "stop") == is_cut
        assert not any(word in letters(piece.result.token_ids[:-1]) for word in ("aa", "d"))


def test_work_stops_when_nobody_listens() -> None:
    running = run("autoregressive")
    stream = generate_pieces(running.decoder(), requests(), letters, RunFacts(method="any"))
    for _ in range(4):
        next(stream)
    calls = running.runners[0].num_calls
    stream.close()  # type: ignore[attr-defined]
    assert running.runners[0].num_calls == calls


def test_ended_rows_leave_the_batch() -> None:
    running = run("autoregressive")
    decoder = running.decoder()
    stream = generate_pieces(decoder, requests(), letters, RunFacts(method="any"))
    sizes = [len(decoder.pending) for _ in stream]
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)
