"""Incremental text: stop strings across token borders, and characters across tokens."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtad.decoding.text import Decode, TextStream

ALPHABET = "ab \N{LATIN SMALL LETTER E WITH ACUTE}\N{EURO SIGN}\N{GRINNING FACE}"


def decode_bytes(token_ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def decode_pieces(pieces: Sequence[bytes]) -> Decode:
    return lambda token_ids: b"".join(pieces[token] for token in token_ids).decode("utf-8", errors="replace")


class Fed:
    """A stream fed with tokens until it stops, as a caller sees it."""

    def __init__(self, pieces: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self.stream = TextStream(decode_pieces(pieces), stop)
        self.shown: list[str] = []
        self.num_pushed = 0
        for token in range(len(pieces)):
            self.shown.append(self.stream.push(token))
            self.num_pushed += 1
            if self.stream.is_stopped:
                break
        self.shown.append(self.stream.finish())

    @property
    def text(self) -> str:
        assert "".join(self.shown) == self.stream.text
        return self.stream.text


def split(text: str, cuts: Sequence[int]) -> list[bytes]:
    """The text's bytes, cut at these places."""
    data = text.encode()
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(ALPHABET, max_size=20), st.lists(st.integers(0, 100), max_size=25))
def test_any_split_gives_the_whole_text(text: str, cuts: list[int]) -> None:
    assert Fed(split(text, cuts)).text == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=16))
def test_any_bytes_give_what_decoding_them_at_once_gives(data: bytes) -> None:
    assert Fed([bytes([byte]) for byte in data]).text == data.decode("utf-8", errors="replace")


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.text("ab\N{EURO SIGN}", max_size=16),
    st.lists(st.integers(0, 60), max_size=20),
    st.lists(st.text("ab\N{EURO SIGN}", min_size=1, max_size=4), max_size=3),
)
def test_text_is_cut_before_the_first_stop_string(text: str, cuts: list[int], stop: list[str]) -> None:
    fed = Fed(split(text, cuts), stop)
    ends = [text.index(word) for word in stop if word in text]
    assert fed.stream.is_stopped == bool(ends)
    if not ends:
        assert fed.text == text
        return
    assert not any(word in fed.text for word in stop)
    assert text.startswith(fed.text)
    # Token by token, the first match to be complete decides, and at one moment the leftmost.
    complete = min(text.index(word) + len(word) for word in stop if word in text)
    assert len(fed.text) < complete


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text("ab\N{EURO SIGN}", max_size=16),
    st.lists(st.integers(0, 60), max_size=20),
    st.text("ab\N{EURO SIGN}", min_size=1, max_size=4),
)
def test_one_stop_string_cuts_at_its_first_occurrence(text: str, cuts: list[int], word: str) -> None:
    fed = Fed(split(text, cuts), [word])
    assert fed.text == (text[: text.index(word)] if word in text else text)


def test_nothing_that_may_become_a_stop_string_is_shown() -> None:
    stream = TextStream(decode_bytes, ["\n\nUser"])
    assert [stream.push(byte) for byte in b"hi\n\nUse"] == ["h", "i", "", "", "", "", ""]
    assert stream.push(ord("d")) == "\n\nUsed"
    assert [stream.push(byte) for byte in b"\n\nUser"] == [""] * 6
    assert stream.is_stopped
    assert stream.finish() == ""
    assert stream.text == "hi\n\nUsed"


def test_held_back_text_is_shown_at_the_end() -> None:
    fed = Fed([b"one st"], ["stop"])
    assert fed.shown == ["one ", "st"]


def test_a_stop_string_inside_one_token_hides_the_rest_of_it() -> None:
    fed = Fed([b"yes", b" stop here", b"more"], ["stop"])
    assert fed.text == "yes "
    assert fed.num_pushed == 2


def test_the_leftmost_of_several_stop_strings_counts() -> None:
    assert Fed([b"abcd"], ["cd", "bc"]).text == "a"


@pytest.mark.parametrize("character", ["\N{EURO SIGN}", "\N{GRINNING FACE}"])
def test_an_unfinished_character_is_held_back(character: str) -> None:
    data = character.encode()
    fed = Fed([b"x", *[bytes([byte]) for byte in data], b"y"])
    assert fed.shown == ["x", *[""] * (len(data) - 1), character, "y", ""]


def test_a_character_that_is_never_finished_is_shown_as_unknown() -> None:
    fed = Fed([b"x", "\N{EURO SIGN}".encode()[:2]])
    assert fed.shown == ["x", "", "\N{REPLACEMENT CHARACTER}"]


def test_tokens_without_text_change_nothing() -> None:
    assert Fed([b"", b"a", b"", b"b", b""]).shown == ["", "a", "", "b", "", ""]


def test_a_tokenizer_that_joins_words_with_spaces_is_followed() -> None:
    words = ["good", "day", "to", "you"]

    def decode(token_ids: Sequence[int]) -> str:
        return " ".join(words[token] for token in token_ids)

    stream = TextStream(decode)
    assert [stream.push(token) for token in range(4)] == ["good", " day", " to", " you"]
