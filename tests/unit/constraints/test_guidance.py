"""Grammars against the words of their language, written out."""

import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import EOS, VOCAB_SIZE

from mtad.constraints import GrammarKind, GrammarLibrary, check_grammar
from mtad.errors import ConfigError
from mtad.structures import GrammarCursor

WIDTH = VOCAB_SIZE + 3
"""Wider than the tokenizer, and a multiple of 32."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def library(tokenizer: Any) -> GrammarLibrary:
    return GrammarLibrary(tokenizer, WIDTH, frozenset({EOS, 1}))


def tokens_of(cursor: GrammarCursor, path: Sequence[int] = ()) -> set[int] | None:
    mask = cursor.allowed(path)
    if mask is None:
        return None
    assert mask.shape == (WIDTH // 32,)
    bits = (mask.unsqueeze(-1) >> torch.arange(32)) & 1
    return set(bits.flatten().nonzero().flatten().tolist())


def expected_tokens(tokenizer: Any, words: set[str], path: Sequence[int]) -> set[int]:
    text = tokenizer.decode(list(path))
    follows = {
        token
        for token in range(3, len(tokenizer))
        if any(word.startswith(text + tokenizer.decode([token])) for word in words)
    }
    return follows | ({EOS, 1} if text in words else set())


WORDS = {
    "(ab|a,)c?": {"ab", "abc", "a,", "a,c"},
    "[ab]{0,3}": {"".join(word) for count in range(4) for word in itertools.product("ab", repeat=count)},
    '\\{"(:|a)\\}': {'{":}', '{"a}'},
}


@pytest.mark.parametrize("regex", WORDS)
def test_the_masks_of_all_paths_are_those_of_the_language(regex: str, tokenizer: Any, library: GrammarLibrary) -> None:
    cursor, words = library.compile("regex", regex).cursor(), WORDS[regex]
    frontier: list[tuple[int, ...]] = [()]
    seen: list[tuple[int, ...]] = []
    while frontier:
        path = frontier.pop()
        seen.append(path)
        allowed = tokens_of(cursor, path)
        assert allowed == expected_tokens(tokenizer, words, path)
        frontier += [(*path, token) for token in allowed - {EOS, 1}]
    assert len(seen) > 3
    # Asking about paths has not moved the cursor: after a commit the same holds for what is left.
    for path in (item for item in seen if len(item) == 2):
        other = library.compile("regex", regex).cursor()
        other.allowed(path)
        other.allowed(())
        other.advance(path[:1])
        assert tokens_of(other, path[1:]) == expected_tokens(tokenizer, words, path)
        other.advance(path[1:])
        assert tokens_of(other) == expected_tokens(tokenizer, words, path)


def test_behind_an_end_and_off_the_grammar_anything_goes(tokenizer: Any, library: GrammarLibrary) -> None:
    a, b, c, ab = tokenizer.convert_tokens_to_ids(["a", "b", "c", "ab"])
    cursor = library.compile("regex", "(ab|a,)c?").cursor()
    assert cursor.allowed((b,)) is None
    assert cursor.allowed((a, c)) is None
    assert cursor.allowed((ab, EOS)) is None
    assert cursor.allowed((ab, 1, a)) is None
    assert tokens_of(cursor) == {a, ab}
    cursor.advance([ab, EOS, c])
    assert cursor.allowed(()) is None
    cursor.advance([b])
    assert cursor.allowed((a,)) is None


def test_the_order_of_questions_does_not_matter(tokenizer: Any, library: GrammarLibrary) -> None:
    # Random walks through JSON, each mask against that of a cursor that was asked nothing before.
    item = {"type": "string", "maxLength": 4}
    schema = {
        "type": "object",
        "properties": {"a": item, "b": {"type": "array", "items": {"enum": [True, False, 12]}, "maxItems": 3}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    grammar = library.compile("json_schema", json.dumps(schema))
    generator = random.Random(0)
    num_questions = 0
    for _ in range(12):
        cursor, text = grammar.cursor(), list[int]()
        while EOS not in text:
            frontier: list[tuple[int, ...]] = [()]
            for _ in range(3):
                paths: list[tuple[int, ...]] = []
                for path in frontier:
                    untouched = grammar.cursor()
                    untouched.advance(text + list(path))
                    allowed = tokens_of(cursor, path)
                    assert allowed is not None
                    assert allowed == tokens_of(untouched)
                    num_questions += 1
                    paths += [(*path, token) for token in generator.sample(sorted(allowed), min(3, len(allowed)))]
                frontier = generator.sample(paths, min(4, len(paths)))
                frontier = [path for path in frontier if EOS not in path and 1 not in path]
            token = generator.choice(sorted(tokens_of(cursor) or set()))
            text.append(EOS if token == 1 else token)
            cursor.advance(text[-1:])
    assert num_questions > 1000


def test_masks_are_worked_out_once(library: GrammarLibrary, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    cursor = library.compile("regex", "[ab]{0,3}").cursor()
    found: list[tuple[int, ...]] = []
    find = cursor._find

    def recorded(path: tuple[int, ...]) -> torch.Tensor | None:
        found.append(path)
        return find(path)

    monkeypatch.setattr(cursor, "_find", recorded)
    for _ in range(2):
        for path in ((), (a,), (a, b)):
            cursor.allowed(path)
    assert found == [(), (a,), (a, b)]
    cursor.advance([a])
    assert tokens_of(cursor, (b,)) == tokens_of(cursor, (b,))
    assert found == [(), (a,), (a, b)]


@pytest.mark.parametrize("grammar", ['start: "a" X\nX: /b/ & /c/', 'start: "a" "Z"'])
def test_a_dead_end_allows_nothing_and_can_be_left(grammar: str, tokenizer: Any, library: GrammarLibrary) -> None:
    a = tokenizer.convert_tokens_to_ids("a")
    cursor = library.compile("grammar", grammar).cursor()
    assert tokens_of(cursor) == {a}
    for _ in range(2):
        assert tokens_of(cursor, (a,)) == set()
    assert tokens_of(cursor) == {a}
    cursor.advance([a])
    assert tokens_of(cursor) == set()
    cursor.advance([a])
    assert cursor.allowed(()) is None


def test_whitespace_in_json_is_bounded(tokenizer: Any, library: GrammarLibrary) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    grammar = library.compile("json_schema", json.dumps(schema))

    def is_accepted(text: str) -> bool:
        cursor = grammar.cursor()
        for token in [*tokenizer(text)["input_ids"], EOS]:
            allowed = tokens_of(cursor)
            if allowed is None or token not in allowed:
                return False
            cursor.advance([token])
        return True

    written = ['{"a":1}', '{"a": 1}', '{ "a" : 1 }', json.dumps({"a": 1}, indent=2), json.dumps({"a": 1}, indent=16)]
    assert all(map(is_accepted, written))
    refused = [
        '{"a":  1}',
        '{"a": 1}\n',
        ' {"a": 1}',
        json.dumps({"a": 1}, indent=17),
        '{\n\n"a": 1}',
        '{"a": 1} ',
        "{}",
    ]
    assert not any(map(is_accepted, refused))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "(ab", r"regex does not compile \(.*unclosed group.*\), expected a regular expression"),
        ("grammar", "start: b", r"grammar does not compile \(.*unknown name"),
        ("grammar", "begin: /b/", r"grammar does not compile \(no start rule"),
        ("json_schema", '{"type": "strin"}', r"json_schema does not compile \(Invalid type: strin\), expected a JSON"),
        ("json_schema", '{"type": ', r"json_schema does not compile \(.*EOF"),
        ("json_schema", '{"unevaluatedProperties": false}', "Unimplemented keys"),
        ("json_schema", "[]", "object"),
    ],
)
def test_what_does_not_compile_is_one_sentence(
    kind: GrammarKind, text: str, message: str, library: GrammarLibrary
) -> None:
    for attempt in (lambda: library.compile(kind, text), lambda: check_grammar(kind, text)):
        with pytest.raises(ConfigError, match=message) as raised:
            attempt()
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 400


def test_a_tokenizer_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens llguidance cannot read"):
        GrammarLibrary(tiny_tokenizer(), VOCAB_SIZE, frozenset({EOS})).compile("regex", "a")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'mtad\[grammar\]'"):
        GrammarLibrary(tokenizer, VOCAB_SIZE, frozenset({EOS})).compile("regex", "a")
    with pytest.raises(ConfigError, match=r"pip install 'mtad\[grammar\]'"):
        check_grammar("regex", "a")


def test_compiled_grammars_are_kept(library: GrammarLibrary) -> None:
    first = library.compile("regex", "a{1,2}")
    assert library.compile("regex", "a{1,2}") is first
    for count in range(40):
        library.compile("regex", f"a{{1,{count + 3}}}")
    assert library.compile("regex", "a{1,2}") is not first
