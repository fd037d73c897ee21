"""What a prepared `generate` call of transformers asks for; whatever mtad cannot honour is an error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    LogitNormalization,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from mtad.errors import ConfigError, PromptError

_WARPERS = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p"}
_OWN_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)
_PREPARED_ARGUMENTS = frozenset(
    {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
)
"""Arguments of the model call that `generate` adds by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """Temperature (0 is greedy), top-k (0 keeps all) and top-p of the call."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def read_warp(logits_processor: Sequence[Any], *, do_sample: bool) -> Warp:
    """The warp that the prepared logits processors stand for.

    Raises:
        ConfigError: A processor that mtad does not compute, or warpers out of order.
    """
    found: dict[str, Any] = {}
    for processor in logits_processor:
        if type(processor) is LogitNormalization:
            continue
        name = _WARPERS.get(type(processor))
        if name is None or not do_sample:
            raise ConfigError(
                f"got the logits processor {type(processor).__name__}, expected none but temperature, top_k and top_p "
                "of a sampling call; leave out the argument that asks for it"
            )
        found[name] = getattr(processor, name)
    in_order = [name for name in _WARPERS.values() if name in found]
    if list(found) != in_order or len(found) != sum(type(item) in _WARPERS for item in logits_processor):
        raise ConfigError(
            f"got the warpers {', '.join(found)}, expected each at most once, as temperature, top_k, top_p"
        )
    return Warp(**found) if do_sample else Warp(temperature=0.0)


def check_generation_config(generation_config: Any) -> None:
    """Refuse strategies and outputs that mtad does not offer.

    Raises:
        ConfigError: Names the setting.
    """
    mode = generation_config.get_generation_mode()
    if mode not in _OWN_MODES:
        raise ConfigError(
            f"got generation mode {mode.value}, expected greedy or sampling; mtad has beams of its own: pass "
            "mtad_method='beam_sampling' and beam_width instead of num_beams"
        )
    for name in ("prompt_lookup_num_tokens", "assistant_early_exit"):
        if getattr(generation_config, name, None) is not None:
            raise ConfigError(f"got {name}, which mtad does not offer; leave it out")
    if generation_config.return_dict_in_generate:
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if getattr(generation_config, name, None):
                raise ConfigError(f"got {name}=True, but mtad returns sequences only; leave it out")


def check_model_arguments(model_arguments: dict[str, Any]) -> None:
    """Refuse arguments of the model call that mtad would have to ignore.

    Raises:
        ConfigError: Names the argument.
    """
    for name, value in model_arguments.items():
        is_empty = value is None or (name == "token_type_ids" and not bool(value.any()))
        if name not in _PREPARED_ARGUMENTS and not is_empty:
            raise ConfigError(f"got the model argument {name}, expected token ids and an attention mask only")
    cache = model_arguments.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ConfigError("got a filled past_key_values, but mtad keeps a cache of its own; pass the whole prompt")
    positions, mask = model_arguments.get("position_ids"), model_arguments.get("attention_mask")
    if positions is not None:
        counted = torch.arange(positions.shape[-1], device=positions.device) if mask is None else mask.cumsum(-1) - 1
        visible = torch.ones_like(positions, dtype=torch.bool) if mask is None else mask.bool()
        if bool(((positions != counted) & visible).any()):
            raise ConfigError("got position_ids of your own, but mtad counts positions itself; leave them out")


def read_prompts(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Token ids of every row without padding.

    Args:
        input_ids: `[batch, tokens]` int64.
        attention_mask: `[batch, tokens]`, 0 for padding, or None.

    Raises:
        PromptError: A row is empty.
    """
    visible = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, visible, strict=True)]
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise PromptError(f"prompt {row + 1} has no tokens; pass token ids, and a mask that shows some of them")
    return prompts


def read_max_length(stopping_criteria: Sequence[Any], generation_config: Any) -> int:
    """Tokens of prompt and answer together, padding included."""
    limits = [item.max_length for item in stopping_criteria if isinstance(item, MaxLengthCriteria)]
    return int(min(limits, default=generation_config.max_length))


def read_eos_token_ids(stopping_criteria: Sequence[Any]) -> frozenset[int]:
    """Tokens that end an answer."""
    ids: set[int] = set()
    for item in stopping_criteria:
        if isinstance(item, EosTokenCriteria):
            ids.update(item.eos_token_id.flatten().tolist())
    return frozenset(ids)


def other_criteria(stopping_criteria: Sequence[Any], prompt: Tensor) -> Callable[[Sequence[int]], bool] | None:
    """A test on one row's answer for all criteria besides length and EOS, or None without any.

    Args:
        stopping_criteria: The prepared criteria; each is called after every token, with one row and no scores.
        prompt: The row's prompt as it was passed, padding included, `[tokens]` int64.
    """
    others = [item for item in stopping_criteria if not isinstance(item, (MaxLengthCriteria, EosTokenCriteria))]
    if not others:
        return None

    def ends_after(token_ids: Sequence[int]) -> bool:
        row = torch.cat([prompt, prompt.new_tensor(token_ids)]).unsqueeze(0)
        return any(bool(torch.as_tensor(item(row, None)).all()) for item in others)

    return ends_after
