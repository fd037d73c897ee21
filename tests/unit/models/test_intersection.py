"""Tokens of two tokenizers are paired when they stand for the same text."""

from typing import Any

import pytest
import torch
from tests.two_tokenizers import byte_level_tokenizer, metaspace_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel, WordPiece
from transformers import PreTrainedTokenizerFast

from mtad.errors import VocabularyMismatchError
from mtad.models.intersection import Vocabulary, VocabularyMap, intersect, read_vocabulary
from mtad.models.matching import map_vocabulary

WIDTH = 330
"""Logits of the target: its tokens and some padding."""


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Any, Any]:
    return byte_level_tokenizer(), metaspace_tokenizer()


@pytest.fixture(scope="module")
def mapped(tokenizers: tuple[Any, Any]) -> VocabularyMap:
    return map_vocabulary(*tokenizers, (WIDTH, len(tokenizers[1])))


def decoded(tokenizer: Any, token_id: int) -> str:
    """The text that a token adds behind another, by the tokenizer's own decoder."""
    before = tokenizer.convert_tokens_to_ids("a")
    return str(tokenizer.decode([before, token_id])[1:])


def readable(tokenizer: Any) -> dict[int, str]:
    """Text of every ordinary token that is text by itself."""
    ordinary = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    texts = {token_id: decoded(tokenizer, token_id) for token_id in sorted(ordinary)}
    return {token_id: text for token_id, text in texts.items() if "\N{REPLACEMENT CHARACTER}" not in text}


def test_pairs_are_exactly_the_tokens_that_decode_to_the_same_text(
    tokenizers: tuple[Any, Any], mapped: VocabularyMap
) -> None:
    target, draft = (readable(tokenizer) for tokenizer in tokenizers)
    shared = set(target.values()) & set(draft.values())
    pairs = {index: int(partner) for index, partner in enumerate(mapped.draft_ids.tolist()) if index in target}
    assert {" the", "the", " ", "caf", " town"} & shared >= {" the", " "}
    assert len([text for text in shared if len(text) > 1]) >= 10
    assert {target[index] for index, partner in pairs.items() if partner >= 0} == shared
    assert all(target[index] == draft[partner] for index, partner in pairs.items() if partner >= 0)
    assert 0 < list(pairs.values()).count(-1) < len(pairs)


def test_no_token_is_paired_twice(tokenizers: tuple[Any, Any], mapped: VocabularyMap) -> None:
    partners = [partner for partner in mapped.draft_ids.tolist() if partner >= 0]
    assert len(partners) == len(set(partners)) == mapped.num_shared
    assert mapped.draft_ids.shape == mapped.fed_ids.shape == (WIDTH,)
    assert mapped.num_tokens == len(tokenizers[0])
    assert str(mapped) == f"{mapped.num_shared} of the target's {len(tokenizers[0])} tokens"
    assert mapped.draft_ids[len(tokenizers[0]) :].tolist() == [-1] * (WIDTH - len(tokenizers[0]))


def test_every_byte_has_its_partner(tokenizers: tuple[Any, Any], mapped: VocabularyMap) -> None:
    target, draft = tokenizers
    for letter, byte in (("Ã", 0xC3), ("©", 0xA9), ("ð", 0xF0), ("Ċ", 0x0A)):
        assert mapped.draft_ids[target.convert_tokens_to_ids(letter)] == draft.convert_tokens_to_ids(f"<0x{byte:02X}>")
    # The draft writes "a" as such and not as a byte.
    assert mapped.draft_ids[target.convert_tokens_to_ids("a")] == draft.convert_tokens_to_ids("a")


def test_special_tokens_are_paired_by_role_then_by_spelling(tokenizers: tuple[Any, Any], mapped: VocabularyMap) -> None:
    target, draft = tokenizers
    expected = {"<|start|>": "<s>", "<|end|>": "</s>", "<|tool|>": "<|tool|>"}
    for token, partner in expected.items():
        assert mapped.draft_ids[target.convert_tokens_to_ids(token)] == draft.convert_tokens_to_ids(partner)
    assert mapped.draft_ids[target.convert_tokens_to_ids("<|only here|>")] == -1


def vocabulary(texts: str, specials: dict[int, str] | None = None, **roles: int) -> Vocabulary:
    """Words at ids 10, 11, ...; `_` stands for a space."""
    words = {10 + index: word.replace("_", " ").encode() for index, word in enumerate(texts.split())}
    return Vocabulary(texts=words, specials=specials or {}, roles=roles)


def pairs_of(target: Vocabulary, draft: Vocabulary) -> dict[int, int]:
    mapped = intersect(target, draft, 20)
    return {index: partner for index, partner in enumerate(mapped.draft_ids.tolist()) if partner >= 0}


def test_a_role_goes_to_the_same_spelling_where_there_is_one() -> None:
    target = vocabulary("a", {0: "<s>", 1: "<end>"}, eos=1, bos=0)
    assert pairs_of(target, vocabulary("a", {3: "<end>", 4: "</s>"}, eos=4)) == {1: 3, 10: 10}
    assert pairs_of(target, vocabulary("a", {3: "<other>", 4: "</s>"}, eos=4)) == {1: 4, 10: 10}
    # One token for everything ends the text, which matters most.
    assert pairs_of(target, vocabulary("a", {5: "<all>"}, eos=5, bos=5, pad=5)) == {1: 5, 10: 10}


def test_a_special_token_is_no_plain_text() -> None:
    assert pairs_of(vocabulary("</s> b"), vocabulary("a b", {1: "</s>"}, eos=1)) == {11: 11}


def test_a_token_without_a_partner_is_fed_as_its_longest_ending() -> None:
    target = vocabulary("unbelievable _un able qx", {0: "<s>", 1: "</s>", 2: "<x>"}, bos=0, eos=1)
    draft = vocabulary("able unbe e x", {5: "<all>"}, eos=5, bos=5)
    fed = intersect(target, draft, 20).fed_ids.tolist()
    assert fed[10:14] == [10, 5, 10, 13]
    assert fed[:3] == [5, 5, 5]
    assert fed[14:] == [5] * 6


def test_ids_beyond_the_models_width_are_left_out(tokenizers: tuple[Any, Any]) -> None:
    read = read_vocabulary(tokenizers[0], 300)
    assert max(read.texts) == 299
    assert read.num_tokens == 300


def wrap(backend: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


def test_other_ways_to_spell_a_space() -> None:
    pieces = Tokenizer(WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    pieces.decoder = decoders.WordPiece()
    assert read_vocabulary(wrap(pieces), 3).texts == {1: b" play", 2: b"ing", 0: b" [UNK]"}
    endings = Tokenizer(BPE({"play": 0, "ing</w>": 1}, []))
    endings.decoder = decoders.BPEDecoder(suffix="</w>")
    assert read_vocabulary(wrap(endings), 2).texts == {0: b"play", 1: b"ing "}
    spaces = Tokenizer(BPE({"▁play": 0, "ing": 1}, []))
    spaces.decoder = decoders.Metaspace()
    assert read_vocabulary(wrap(spaces), 2).texts == {0: b" play", 1: b"ing"}
    plain = Tokenizer(WordLevel({"play": 0, "<0x41>": 1}))
    assert read_vocabulary(wrap(plain), 2).texts == {0: b"play", 1: b"<0x41>"}
    byte_level = Tokenizer(BPE({"Ġplay": 0, "▁": 1}, []))
    byte_level.decoder = decoders.ByteLevel()
    assert read_vocabulary(wrap(byte_level), 2).texts == {0: b" play", 1: "▁".encode()}


def test_a_vocabulary_that_shares_too_little_is_refused(tokenizers: tuple[Any, Any]) -> None:
    letters = wrap(Tokenizer(BPE({letter: index for index, letter in enumerate("abcdefgh")}, [])))
    expected = r"got a draft that has only 8 of the target's 323 tokens, expected at least 5%; use a draft whose"
    with pytest.raises(VocabularyMismatchError, match=expected):
        map_vocabulary(tokenizers[0], letters, (WIDTH, 8))


def test_a_tokenizer_that_cannot_be_read_is_refused(tokenizers: tuple[Any, Any]) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(VocabularyMismatchError, match=r"got a Slow, .* expected a tokenizer with a tokenizer\.json"):
        map_vocabulary(tokenizers[0], Slow(), (WIDTH, 8))


def test_equal_vocabularies_are_mapped_to_themselves(tokenizers: tuple[Any, Any]) -> None:
    for tokenizer in tokenizers:
        size = len(tokenizer)
        mapped = map_vocabulary(tokenizer, tokenizer, (size, size))
        is_shared = mapped.draft_ids >= 0
        assert torch.equal(mapped.draft_ids[is_shared], torch.arange(size)[is_shared])
        # Only a byte that is also there as a letter is left out.
        assert [tokenizer.convert_ids_to_tokens(index)[:3] for index in (~is_shared).nonzero().flatten().tolist()] == [
            "<0x"
        ] * (size - mapped.num_shared)
