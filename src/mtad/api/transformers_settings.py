"""What a prepared `generate` call of transformers asks for; whatever mtad cannot honour is an error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    LogitNormalization,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from mtad.errors import ConfigError, PromptError
from mtad.structures import LogitsProcessor, RowConstraints

_WARPERS = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
_STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)
_OWN_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)
_PREPARED_ARGUMENTS = frozenset(
    {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
)
"""Arguments of the model call that `generate` adds by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """Temperature (0 is greedy), top-k (0 keeps all), top-p and min-p of the call."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def split_processors(logits_processor: Sequence[Any], *, do_sample: bool) -> tuple[list[Any], Warp]:
    """The prepared logits processors as those to call and the warp that comes after them.

    The longest tail that is temperature, top-k, top-p and min-p in this order is the warp.

    Raises:
        ConfigError: A processor that keeps a state from call to call.
    """
    for processor in logits_processor:
        if isinstance(processor, _STATEFUL):
            raise ConfigError(
                f"got the logits processor {type(processor).__name__}, which keeps a state from call to call, expected "
                "functions of token ids and scores; leave out the argument that asks for it"
            )
    called = list(logits_processor)
    while called and type(called[-1]) is LogitNormalization:
        called.pop()
    if not do_sample:
        return called, Warp(temperature=0.0)
    found: dict[str, Any] = {}
    for name, kind in reversed(_WARPERS.items()):
        if called and type(called[-1]) is kind:
            found[name] = getattr(called.pop(), name)
    return called, Warp(**found)


def read_constraints(processors: list[Any], input_ids: Tensor, prompts: list[list[int]]) -> list[RowConstraints]:
    """What the processors before the warp ask of each row.

    A repetition penalty that comes first stays on the device; it does not count padding as text.

    Args:
        processors: From `split_processors`.
        input_ids: The prompts as they were passed, padding included, `[batch, tokens]` int64.
        prompts: Their token ids without padding.
    """
    penalty = 1.0
    first = processors[0] if processors else None
    if type(first) is RepetitionPenaltyLogitsProcessor and not isinstance(first.prompt_ignore_length, int):
        penalty, processors = first.penalty, processors[1:]
    return [
        RowConstraints(
            repetition_penalty=penalty,
            logits_processors=tuple(
                _with_padding(_for_row(processor, row), input_ids[row], len(prompt)) for processor in processors
            ),
        )
        for row, prompt in enumerate(prompts)
    ]


def _for_row(processor: Any, row: int) -> Any:
    """The processor as it treats one row of the batch; rows are processed one by one."""
    if type(processor) is PrefixConstrainedLogitsProcessor:
        allowed = processor._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda _, token_ids: allowed(row, token_ids), num_beams=1)
    ignored = getattr(processor, "prompt_ignore_length", None)
    if type(processor) is RepetitionPenaltyLogitsProcessor and isinstance(ignored, Tensor):
        return RepetitionPenaltyLogitsProcessor(processor.penalty, int(ignored[row]))
    return processor


def _with_padding(processor: Any, prompt: Tensor, num_tokens: int) -> LogitsProcessor:
    """Shows the processor the prompt as it was passed; `num_tokens` of `prompt` are no padding."""
    if len(prompt) == num_tokens:
        return cast(LogitsProcessor, processor)

    def process(token_ids: Tensor, scores: Tensor) -> Tensor:
        padded = torch.cat([prompt.unsqueeze(0), token_ids[:, num_tokens:]], 1)
        return cast(Tensor, processor(padded, scores))

    return process


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
