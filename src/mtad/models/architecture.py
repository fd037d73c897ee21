"""Which architectures tree attention over a static cache can serve, told before any weight is read."""

from typing import Any

from mtad.errors import UnsupportedModelError

TESTED_MODEL_TYPES = frozenset(
    {"gemma", "gemma2", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"}
)
"""Types whose tree logits the tests compare with the stock model's; others are probed when they are loaded."""

_FULL_ATTENTION_TYPES = {"full_attention", "sliding_attention"}


def check_architecture(model_class: type, config: Any) -> None:
    """Refuse by name what tree attention over a static cache cannot serve.

    Args:
        model_class: Class of the causal language model; only its flags and name are read.
        config: Its configuration.

    Raises:
        UnsupportedModelError: Encoder-decoder, state-space, hybrid or non-interface attention models.
    """
    text_config = config.get_text_config(decoder=True)
    layer_types = set(getattr(text_config, "layer_types", None) or ())
    if config.is_encoder_decoder:
        raise unsupported(model_class, config, "it is an encoder-decoder model")
    if getattr(model_class, "_is_stateful", False):
        raise unsupported(model_class, config, "its state-space or hybrid cache cannot be rolled back")
    if not layer_types <= _FULL_ATTENTION_TYPES:
        raise unsupported(
            model_class, config, f"it has layers of type {', '.join(sorted(layer_types - _FULL_ATTENTION_TYPES))}"
        )
    if getattr(text_config, "alibi", False):
        raise unsupported(model_class, config, "its ALiBi position biases are not computed")
    if not getattr(model_class, "_supports_attention_backend", False):
        raise unsupported(model_class, config, "it does not follow transformers' attention interface")


def unsupported(model_class: type, config: Any, reason: str) -> UnsupportedModelError:
    """The error for a model that cannot be served, and why."""
    return UnsupportedModelError(
        f"{model_class.__name__} ({config.model_type}) cannot be served: {reason}; "
        "use a decoder-only model with full attention, such as Llama, Qwen, Mistral, Gemma, GPT-2, OPT or GPT-NeoX"
    )


def smallest_window(config: Any) -> int | None:
    """Tokens the narrowest attention layer sees, or None where every layer sees all."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    if not getattr(config, "use_sliding_window", True):
        return None
    return getattr(config, "sliding_window", None)


def longest_sequence(config: Any) -> int | None:
    """Positions the model can be used at, or None when it has no limit.

    Rotary embeddings of type `longrope` change their frequencies for the whole sequence once it outgrows the original
    length, which keys cached earlier cannot follow; such models stop there.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if rope.get("rope_type") == "longrope" and original:
        return int(original) if limit is None else min(limit, int(original))
    return limit
