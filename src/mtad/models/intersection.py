"""What the tokens of two vocabularies stand for, and which of them both have."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from mtad.errors import VocabularyMismatchError

ROLES = ("eos", "bos", "unk", "pad")
"""Special tokens with a meaning that does not depend on their spelling, the most useful first."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the tokens of one model stand for.

    Attributes:
        texts: Bytes of every ordinary token, by id.
        specials: Spelling of every special token, by id.
        roles: Id of the special token of each role that the tokenizer names.
    """

    texts: dict[int, bytes]
    specials: dict[int, str]
    roles: dict[str, int]

    @property
    def num_tokens(self) -> int:
        """Tokens that stand for something; the padding of a model's width does not."""
        return len(self.texts) + len(self.specials)


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyMap:
    """How a draft with another vocabulary reads and writes the target's token ids.

    Attributes:
        draft_ids: The draft's id for each target token, -1 where the draft has no such token, `[target_vocab]` int64;
            no draft id occurs twice.
        fed_ids: What the draft is fed for each target token, `[target_vocab]` int64: the same token where there is
            one, else a substitute.
        num_tokens: Tokens of the target's tokenizer.
    """

    draft_ids: Tensor
    fed_ids: Tensor
    num_tokens: int

    @property
    def num_shared(self) -> int:
        """Tokens that both vocabularies have."""
        return int((self.draft_ids >= 0).sum())

    def __str__(self) -> str:
        return f"{self.num_shared:,} of the target's {self.num_tokens:,} tokens"


def read_vocabulary(tokenizer: Any, width: int) -> Vocabulary:
    """The meaning of every token that a model of `width` logits can read and write.

    Byte-level alphabets, metaspaces, byte tokens, word-piece prefixes and word-end suffixes become plain bytes, each as
    the tokenizer's own decoder says.

    Raises:
        VocabularyMismatchError: The tokenizer does not say how its tokens become text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise VocabularyMismatchError(
            f"got a {type(tokenizer).__name__}, whose tokens cannot be read one by one, expected a tokenizer with a "
            "tokenizer.json; use a draft made for this target"
        )
    named = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    roles = {role: index for role, index in named.items() if index is not None and index < width}
    flagged = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = flagged | {*roles.values(), *tokenizer.all_special_ids}
    spell = _reader(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
    tokens = {index: token for token, index in tokenizer.get_vocab().items() if index < width}
    return Vocabulary(
        # Shorter spellings come first: where "A" and "<0x41>" are both there, "A" is the one that a model writes.
        texts={
            index: spell(token)
            for index, token in sorted(tokens.items(), key=lambda item: (len(item[1]), item[0]))
            if index not in special
        },
        specials={index: token for index, token in sorted(tokens.items()) if index in special},
        roles=roles,
    )


def intersect(target: Vocabulary, draft: Vocabulary, width: int) -> VocabularyMap:
    """Pair the tokens of two vocabularies that stand for the same.

    Ordinary tokens are paired by their bytes. Special tokens are paired by role, then by spelling; a role's token goes
    to the same spelling where the draft has it. A target token without a partner is fed as the draft's longest token
    that ends its text, a special one as the draft's token of that role, else as its end of text.

    Args:
        target: The target's.
        draft: The draft's.
        width: Logits of the target, padding included.
    """
    by_text: dict[bytes, int] = {}
    for index, text in draft.texts.items():
        by_text.setdefault(text, index)
    pairs = _pair_specials(target, draft) | _pair_texts(target, by_text)
    boundary = next((draft.roles[role] for role in ROLES if role in draft.roles), 0)
    fed = {index: draft.roles[role] for role, index in reversed(target.roles.items()) if role in draft.roles}
    fed |= {index: _longest_ending(text, by_text, boundary) for index, text in target.texts.items()}
    fed |= pairs
    return VocabularyMap(
        draft_ids=torch.tensor([pairs.get(index, -1) for index in range(width)]),
        fed_ids=torch.tensor([fed.get(index, boundary) for index in range(width)]),
        num_tokens=target.num_tokens,
    )


def _pair_specials(target: Vocabulary, draft: Vocabulary) -> dict[int, int]:
    """Draft ids by target id."""
    by_spelling = {spelling: index for index, spelling in draft.specials.items()}
    by_role = [
        (index, by_spelling.get(target.specials[index], draft.roles.get(role))) for role, index in target.roles.items()
    ]
    spelled = [(index, by_spelling.get(spelling)) for index, spelling in target.specials.items()]
    return _pair_once([*by_role, *spelled])


def _pair_texts(target: Vocabulary, by_text: dict[bytes, int]) -> dict[int, int]:
    """Draft ids by target id."""
    return _pair_once((index, by_text.get(text)) for index, text in target.texts.items())


def _pair_once(candidates: Iterable[tuple[int, int | None]]) -> dict[int, int]:
    """The pairs whose two tokens have not been paired before."""
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for index, partner in candidates:
        if partner is not None and index not in pairs and partner not in taken:
            pairs[index] = partner
            taken.add(partner)
    return pairs


def _longest_ending(text: bytes, by_text: dict[bytes, int], otherwise: int) -> int:
    return next((by_text[text[start:]] for start in range(len(text)) if text[start:] in by_text), otherwise)


def _reader(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """What turns one token into bytes, from the description of a tokenizer's decoder."""
    steps = _flatten(decoder)
    kinds = {step["type"] for step in steps}
    replaced = [pair for step in steps if (pair := _replacement(step)) is not None]
    prefix = next((step["prefix"] for step in steps if step["type"] == "WordPiece"), None)
    from_alphabet = _byte_alphabet()

    def read(token: str) -> bytes:
        if "ByteFallback" in kinds and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        if "ByteLevel" in kinds and all(letter in from_alphabet for letter in token):
            return bytes(from_alphabet[letter] for letter in token)
        if prefix is not None:
            token = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        return reduce(lambda text, pair: text.replace(*pair), replaced, token).encode()

    return read


def _byte_alphabet() -> dict[str, int]:
    """The letters of byte-level BPE (Radford et al. 2019): printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _flatten(part)]
    return [decoder]


def _replacement(step: dict[str, Any]) -> tuple[str, str] | None:
    """Old and new text of a decoder step that replaces one by the other."""
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "BPEDecoder":
        return step["suffix"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None
