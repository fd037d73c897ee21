"""Names of sizes become configurations of small Llama models."""

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig

from mtad.errors import ConfigError

_NAMED = {"nano": (128, 2), "small": (256, 4), "base": (384, 6)}
_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class DraftShape:
    """Width and depth of a draft.

    Attributes:
        name: As the user said it.
        hidden: Width.
        layers: Depth.
    """

    name: str
    hidden: int
    layers: int

    @classmethod
    def parse(cls, name: str) -> "DraftShape":
        """Read `nano`, `small`, `base` or HIDDENxLAYERS.

        Raises:
            ConfigError: The width cannot be split into attention heads.
        """
        hidden, layers = _NAMED[name] if name in _NAMED else (int(part) for part in name.split("x"))
        if hidden % _MULTIPLE:
            raise ConfigError(f"the width of a draft must be a multiple of {_MULTIPLE}, got {name}; round it up")
        return cls(name, hidden, layers)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        wide = (size for size in (64, 32) if self.hidden % size == 0 and self.hidden >= 4 * size)
        return next(wide, _MULTIPLE)

    def num_parameters(self, vocab_size: int) -> int:
        """Weights of the whole draft, embeddings counted once."""
        heads = self.hidden // self.head_dim
        attention = 2 * self.hidden * self.hidden * (1 + _key_heads(heads) / heads)
        return round(vocab_size * self.hidden + self.layers * (attention + 9 * self.hidden**2))

    def config(self, target_config: Any) -> LlamaConfig:
        """A Llama with the target's vocabulary, special tokens and longest sequence.

        Args:
            target_config: The target's text configuration.
        """
        heads = self.hidden // self.head_dim
        return LlamaConfig(
            vocab_size=int(target_config.vocab_size),
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=_key_heads(heads),
            head_dim=self.head_dim,
            max_position_embeddings=int(getattr(target_config, "max_position_embeddings", None) or 2048),
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=True,
            bos_token_id=target_config.bos_token_id,
            eos_token_id=target_config.eos_token_id,
            pad_token_id=target_config.pad_token_id,
        )


def _key_heads(heads: int) -> int:
    return 2 if heads % 2 == 0 else 1
