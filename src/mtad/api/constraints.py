"""Settings and arguments become the constraints of a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtad.config import GenerationOptions
from mtad.errors import ConfigError
from mtad.structures import LogitsProcessor, RowConstraints


class ConstraintReader:
    """Reads the constraints that settings ask for.

    Args:
        tokenizer: The target's.
        vocab_size: Width of the logits.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    def read(self, options: GenerationOptions, logits_processor: Sequence[LogitsProcessor] = ()) -> RowConstraints:
        """The constraints of every row.

        Args:
            options: Resolved settings.
            logits_processor: Called at every place of the text.

        Raises:
            ConfigError: A token that the model does not have.
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
            logit_bias=tuple(biases.items()),
            logits_processors=tuple(logits_processor),
        )


def spell_logit_bias(changes: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The same changes with a dictionary of biases in the words of the setting.

    Args:
        changes: Settings by name; `logit_bias` may map token ids, or texts that are one token each, to numbers.
        tokenizer: Encodes the texts.

    Raises:
        ConfigError: A text is not exactly one token.
    """
    biases = changes.get("logit_bias")
    if not isinstance(biases, Mapping):
        return dict(changes)
    spelled = tuple(f"{_token_id(token, tokenizer)}:{value}" for token, value in biases.items())
    return {**changes, "logit_bias": spelled}


def _token_id(token: int | str, tokenizer: Any) -> int:
    if not isinstance(token, str):
        return token
    token_ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(token_ids) != 1:
        raise ConfigError(
            f"logit_bias must name single tokens, got {token!r}, which is {len(token_ids)}: {token_ids}; name their ids"
        )
    return int(token_ids[0])
