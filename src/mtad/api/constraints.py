"""Settings and arguments become the constraints of a row."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtad.config import GenerationOptions
from mtad.constraints import GrammarKind, GrammarLibrary, check_grammar
from mtad.errors import ConfigError
from mtad.structures import Grammar, LogitsProcessor, RowConstraints

_KINDS: tuple[GrammarKind, ...] = ("json_schema", "regex", "grammar")
_SCHEMA_TEXT = re.compile(r"\s*[{\[]")
_GRAMMAR_TEXT = re.compile(r"(^|\n)\s*start\s*:|\n")


class ConstraintReader:
    """Reads the constraints that settings ask for.

    Args:
        tokenizer: The target's.
        vocab_size: Width of the logits.
        eos_token_ids: Tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._vocab_size = vocab_size
        self._has_eos = bool(eos_token_ids)
        self._library = GrammarLibrary(tokenizer, vocab_size, eos_token_ids)

    def read(self, options: GenerationOptions, logits_processor: Sequence[LogitsProcessor] = ()) -> RowConstraints:
        """The constraints of every row.

        Args:
            options: Resolved settings.
            logits_processor: Called at every place of the text.

        Raises:
            ConfigError: A token that the model does not have, or a grammar that cannot be used.
        """
        biases = options.logit_biases
        if biases and max(biases) >= self._vocab_size:
            raise ConfigError(
                f"logit_bias must name token ids below {self._vocab_size}, got {max(biases)}; "
                "look the id up in the target's tokenizer"
            )
        assert options.repetition_penalty is not None
        return RowConstraints(
            repetition_penalty=options.repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logit_bias=tuple(biases.items()),
            logits_processors=tuple(logits_processor),
            grammar=self._grammar(options),
        )

    def _grammar(self, options: GenerationOptions) -> Grammar | None:
        found = _described(options)
        if found is None:
            return None
        if not self._has_eos:
            raise ConfigError(f"{found[0]} needs a model with an end-of-text token, got none; leave it out")
        return self._library.compile(*found)


def read_grammar_files(options: GenerationOptions) -> GenerationOptions:
    """The same settings with the text of a grammar in the place of its file.

    Raises:
        ConfigError: A file cannot be read.
    """
    changes: dict[str, Any] = {}
    for kind, is_text in (("json_schema", _SCHEMA_TEXT.match), ("grammar", _GRAMMAR_TEXT.search)):
        value = getattr(options, kind)
        if value is not None and not is_text(value):
            changes[kind] = _read(kind, Path(value))
    return replace(options, **changes) if changes else options


def check_grammars(options: GenerationOptions) -> None:
    """Refuse a grammar that cannot be read or does not compile, before any model is loaded.

    Raises:
        ConfigError: The reason.
    """
    found = _described(read_grammar_files(options))
    if found is not None:
        check_grammar(*found)


def spell_constraints(changes: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The same changes with dictionaries in the words of the settings.

    Args:
        changes: Settings by name; `logit_bias` may map token ids, or texts that are one token each, to numbers, and
            `json_schema` may be the schema as a dictionary.
        tokenizer: Encodes the texts.

    Raises:
        ConfigError: A text is not exactly one token.
    """
    spelled = dict(changes)
    biases, schema = changes.get("logit_bias"), changes.get("json_schema")
    if isinstance(biases, Mapping):
        spelled["logit_bias"] = tuple(f"{_token_id(token, tokenizer)}:{value}" for token, value in biases.items())
    if isinstance(schema, Mapping):
        spelled["json_schema"] = json.dumps(schema)
    return spelled


def _described(options: GenerationOptions) -> tuple[GrammarKind, str] | None:
    """Kind and text of the grammar that the settings hold."""
    return next(((kind, getattr(options, kind)) for kind in _KINDS if getattr(options, kind) is not None), None)


def _read(kind: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{kind} file {path} cannot be read ({error.strerror}); name another or give the text"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{kind} file {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _token_id(token: int | str, tokenizer: Any) -> int:
    if not isinstance(token, str):
        return token
    token_ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(token_ids) != 1:
        raise ConfigError(
            f"logit_bias must name single tokens, got {token!r}, which is {len(token_ids)}: {token_ids}; name their ids"
        )
    return int(token_ids[0])
