"""JSON schemas, regular expressions and context-free grammars, through llguidance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mtad.constraints.places import Path
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

GrammarKind = Literal["json_schema", "regex", "grammar"]

WHITESPACE = r"[ ]|\n[ ]{0,16}"
"""What may stand between the parts of a JSON document; bounded, or a small model may never come to an end."""

_LONGEST_REASON = 300


class GrammarLibrary:
    """Compiles grammars for one tokenizer; what was compiled is kept, as far as the last few are concerned.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vocab_size: Width of the logits; ids behind the tokenizer's are never allowed.
        eos_token_ids: Tokens that end an answer, at least one.
    """

    _MOST_KEPT = 32

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._vocabulary: LLTokenizer | None = None
        self._compiled: dict[tuple[GrammarKind, str], CompiledGrammar] = {}

    def compile(self, kind: GrammarKind, text: str) -> "CompiledGrammar":
        """The grammar that a text describes.

        Args:
            kind: What the text is: a JSON schema, a regular expression in Rust's syntax, or a Lark grammar.
            text: The description.

        Raises:
            ConfigError: It does not compile, the tokenizer cannot be read, or llguidance is missing.
        """
        if (kind, text) not in self._compiled:
            if self._vocabulary is None:
                self._vocabulary = self._read_tokenizer()
            source = _checked_source(kind, text, self._vocabulary)
            while len(self._compiled) >= self._MOST_KEPT:
                self._compiled.pop(next(iter(self._compiled)))
            matcher = _new_matcher(self._vocabulary, source)
            self._compiled[kind, text] = CompiledGrammar(matcher, self._vocab_size, self._eos_token_ids)
        return self._compiled[kind, text]

    def _read_tokenizer(self) -> "LLTokenizer":
        _import_library()
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=sorted(self._eos_token_ids))
        except ValueError as error:
            raise ConfigError(
                f"got a {type(self._tokenizer).__name__} whose tokens llguidance cannot read "
                f"({_one_line(str(error))}), expected a fast tokenizer of transformers; leave the grammar out"
            ) from error


def check_grammar(kind: GrammarKind, text: str) -> None:
    """Refuse a grammar that is wrong whatever the tokenizer.

    Raises:
        ConfigError: It does not compile, or llguidance is missing.
    """
    _import_library()
    _checked_source(kind, text, None)


class CompiledGrammar:
    """A grammar ready to be followed; see `Grammar`.

    Args:
        matcher: At the start of an answer; never moved.
        vocab_size: Width of the logits.
        eos_token_ids: Tokens that end an answer.
    """

    def __init__(self, matcher: "LLMatcher", vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._num_words = -(-vocab_size // 32)
        self._eos_token_ids = eos_token_ids

    def cursor(self) -> "GuidanceCursor":
        """See `Grammar.cursor`."""
        return GuidanceCursor(self._matcher.deep_copy(), self._num_words, self._eos_token_ids)


class GuidanceCursor:
    """Follows one answer; see `GrammarCursor`.

    Every path is followed by a copy, which takes microseconds and shares the states worked out so far, and never by
    going ahead and back: after `rollback`, llguidance 1.9 sometimes gives the mask of another text. What was worked
    out while drafting is kept until tokens are committed, so that verification only looks it up.

    Args:
        matcher: At the start of an answer.
        num_words: Words of 32 bits in a mask.
        eos_token_ids: Tokens that end an answer.
    """

    def __init__(self, matcher: "LLMatcher", num_words: int, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._num_words = num_words
        self._eos_token_ids = eos_token_ids
        self._has_ended = False
        self._known: dict[Path, Tensor | None] = {}

    def allowed(self, path: Sequence[int]) -> Tensor | None:
        """See `GrammarCursor.allowed`; all bits are 0 at a dead end."""
        if self._has_ended:
            return None
        key = tuple(path)
        if key not in self._known:
            self._known[key] = self._find(key)
        return self._known[key]

    def advance(self, tokens: Sequence[int]) -> None:
        """See `GrammarCursor.advance`."""
        self._has_ended = self._has_ended or any(token in self._eos_token_ids for token in tokens)
        if not self._has_ended and self._matcher.try_consume_tokens(list(tokens)) < len(tokens):
            self._has_ended = True
        count = len(tokens)
        self._known = {path[count:]: mask for path, mask in self._known.items() if path[:count] == tuple(tokens)}

    def _find(self, path: Path) -> Tensor | None:
        if any(token in self._eos_token_ids for token in path):
            return None
        matcher = self._matcher.deep_copy()
        if matcher.try_consume_tokens(list(path)) < len(path):
            return None
        # The library's mask may be a word longer than the vocabulary.
        mask = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.int32)[: self._num_words]
        # Where nothing may follow, or a limit was hit, the library allows the end and reports an error.
        return torch.zeros_like(mask) if matcher.is_error() else mask


def _import_library() -> None:
    try:
        import llguidance  # noqa: F401  (only to see whether it is there)
    except ImportError as error:
        raise ConfigError(
            "json_schema, regex and grammar need llguidance, which is not installed; pip install 'mtad[grammar]'"
        ) from error


def _checked_source(kind: GrammarKind, text: str, vocabulary: "LLTokenizer | None") -> str:
    """The grammar in llguidance's own form, known to compile."""
    from llguidance import LLMatcher

    try:
        if kind == "json_schema":
            source = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE})
        elif kind == "regex":
            source = LLMatcher.grammar_from_regex(text)
        else:
            source = LLMatcher.grammar_from_lark(text)
        is_wrong, reasons = LLMatcher.validate_grammar_with_warnings(source, vocabulary)
    except ValueError as error:
        is_wrong, reasons = True, [str(error)]
    if is_wrong:
        expected = {"json_schema": "a JSON schema", "regex": "a regular expression", "grammar": "a Lark grammar"}[kind]
        raise ConfigError(f"{kind} does not compile ({_one_line(' '.join(reasons))}), expected {expected}; correct it")
    return source


def _new_matcher(vocabulary: "LLTokenizer", source: str) -> "LLMatcher":
    from llguidance import LLMatcher

    return LLMatcher(vocabulary, source, log_level=0)


def _one_line(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."
