"""Names and folders become a pair of runners with one tokenizer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mtad.config import ModelOptions
from mtad.errors import ConfigError
from mtad.models.adapters import merge_adapter, resolve_adapter
from mtad.models.architecture import TESTED_MODEL_TYPES
from mtad.models.checkpoints import load_causal_model, read_model_config
from mtad.models.int8_linear import quantise_linears
from mtad.models.intersection import VocabularyMap
from mtad.models.low_rank_head import load_head
from mtad.models.matching import match_draft
from mtad.models.packed_linear import pack_linears
from mtad.models.pairs import KNOWN_PAIRS, resolve_model
from mtad.models.placement import check_device_map, choose_device, choose_dtype, dtype_name
from mtad.models.probe import check_tree_logits
from mtad.models.quantized import quantization_method
from mtad.models.runner import ModelRunner
from mtad.models.threads import set_threads
from mtad.models.tokenizers import has_tokenizer, load_tokenizer, shared_vocab_size
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.translated_runner import TranslatedRunner
from mtad.models.twins import enlarge, find_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a model's own files say about sampling; None where they are silent.

    Attributes:
        temperature: Softmax temperature.
        top_k: Most likely tokens kept, 0 keeps all.
        top_p: Nucleus mass kept.
        min_p: Share of the most likely token's probability that a token needs.
        repetition_penalty: Divides positive logits of tokens that are in the text already.
        eos_token_ids: Tokens that end an answer.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModels:
    """A target, its draft, their tokenizer, and how they were loaded.

    Attributes:
        target: The large model, switched to tree attention.
        draft: The auxiliary model on the target's device, or None.
        tokenizer: The target's.
        defaults: What the target's files say about sampling.
        options: The options with device, dtype and draft put in.
        vocabulary: How the draft reads the target's tokens, where its vocabulary is another.
    """

    target: TransformersRunner
    draft: ModelRunner | None
    tokenizer: Any
    defaults: SamplingDefaults
    options: ModelOptions
    vocabulary: VocabularyMap | None = None


def load_models(options: ModelOptions, *, wants_draft: bool = True) -> LoadedModels:
    """Load a target, and a draft where one is named or belongs to the pair.

    Args:
        options: Which models, and where they run.
        wants_draft: False leaves the draft out.

    Raises:
        ConfigError: No such device, or device map.
        ModelLoadError: A model, adapter or tokenizer cannot be loaded; the message says why and what to do.
        UnsupportedModelError: An architecture that tree attention cannot serve.
        VocabularyMismatchError: Target and draft do not share a vocabulary, or too little of it.
        CapacityError: The memory is not there.
    """
    check_device_map(options.device_map)
    _check_shapes(options)
    set_threads(options.threads)
    device = choose_device(options.device)
    _check_quantization(options, device)
    target_source = resolve_model(options.target, "target")
    config = read_model_config(target_source, "target", options.revision)
    dtype = choose_dtype(options.dtype, config.get_text_config(decoder=True).dtype or config.dtype, device)
    tokenizer = load_tokenizer(target_source, "target", options.revision)
    draft_name = _draft_name(options) if wants_draft else None
    draft_source = None if draft_name is None else resolve_model(draft_name, "draft")
    draft_config = None if draft_source is None else read_model_config(draft_source, "draft")
    vocabulary = _match(options, tokenizer, (target_source, draft_source), (config, draft_config))
    vocab_size = _shared_size(tokenizer, config, draft_config if vocabulary is None else None, draft_source)
    target = _load_target(options, target_source, config, dtype, device)
    defaults = sampling_defaults(target, tokenizer)
    target_runner = _serve(options, target, vocab_size)
    draft_runner: ModelRunner | None = None
    if draft_source is not None:
        draft = _load_draft(options, draft_source, draft_config, dtype, target_runner.device)
        draft_runner = _serve_draft(options, draft, vocab_size, vocabulary)
    resolved = replace(
        options,
        device=str(target_runner.device),
        dtype=dtype_name(dtype),
        draft=draft_name or options.draft,
        match_vocabularies=options.match_vocabularies if draft_source is None else _matched(vocabulary),
    )
    return LoadedModels(
        target=target_runner,
        draft=draft_runner,
        tokenizer=tokenizer,
        defaults=defaults,
        options=resolved,
        vocabulary=vocabulary,
    )


def load_stock_models(options: ModelOptions) -> tuple[Any, Any | None]:
    """Target and draft once more as transformers runs them, to measure its own decoding beside ours.

    Args:
        options: Those of a loaded pair, device and dtype resolved; adapters are merged as for the pair.

    Returns:
        The target and the draft, or None where there is no draft or it has a vocabulary of its own.

    Raises:
        ConfigError: The target is spread over devices.
        ModelLoadError: A model cannot be loaded.
        CapacityError: The memory is not there.
    """
    if options.device_map is not None:
        raise ConfigError(
            f"transformers' own decoding is measured on one device, got device_map {options.device_map}; "
            "leave --device-map out, or the transformers contenders"
        )
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    source = resolve_model(options.target, "target")
    target = _load_target(options, source, read_model_config(source, "target", options.revision), dtype, device)
    if options.draft is None or options.match_vocabularies != "exact":
        return target, None
    draft_source = resolve_model(options.draft, "draft")
    draft_config = read_model_config(draft_source, "draft")
    return target, _load_draft(options, draft_source, draft_config, dtype, device)


def sampling_defaults(model: Any, tokenizer: Any) -> SamplingDefaults:
    """Read what a model's generation config and config state explicitly; the tokenizer's EOS is the last resort."""
    stated = model.generation_config
    token_ids = _as_ids(stated.eos_token_id) | _as_ids(getattr(model.config, "eos_token_id", None))
    return SamplingDefaults(
        temperature=stated.temperature,
        top_k=stated.top_k,
        top_p=stated.top_p,
        min_p=stated.min_p,
        repetition_penalty=stated.repetition_penalty,
        eos_token_ids=token_ids or _as_ids(tokenizer.eos_token_id),
    )


def _as_ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset({value} if isinstance(value, int) else value)


def _check_shapes(options: ModelOptions) -> None:
    for shape in (options.target_shape, options.draft_shape):
        if shape is not None:
            find_shape(shape)
    if options.target_shape is not None and options.device_map is not None:
        raise ConfigError(
            f"a cost twin lies on one device, got device_map {options.device_map}; leave --device-map or "
            "--target-shape out"
        )


def _check_quantization(options: ModelOptions, device: torch.device) -> None:
    if options.quantization == "none":
        return
    if device.type != "cpu":
        raise ConfigError(
            f"8-bit weights are for the CPU, got quantization {options.quantization} on {device}; "
            "use --device cpu, or leave --quantization out"
        )
    if options.device_map is not None:
        raise ConfigError(
            f"8-bit weights lie on the CPU alone, got device_map {options.device_map}; leave --device-map or "
            "--quantization out"
        )


def _draft_name(options: ModelOptions) -> str | None:
    """The named draft, else the pair's own under the pair's name."""
    if options.draft is not None:
        return options.draft
    return options.target if options.target in KNOWN_PAIRS else None


def _shared_size(tokenizer: Any, config: Any, draft_config: Any, draft_source: Path | str | None) -> int:
    is_compared = not isinstance(draft_source, Path) or has_tokenizer(draft_source)
    draft_width = None if draft_config is None else _width(draft_config)
    return shared_vocab_size(tokenizer, _width(config), draft_width, is_compared=is_compared)


def _match(
    options: ModelOptions, tokenizer: Any, sources: tuple[Path | str, Path | str | None], configs: tuple[Any, Any]
) -> VocabularyMap | None:
    """How a draft with another vocabulary reads the target's tokens; None where it has the same or is not there."""
    target, draft = sources
    if draft is None:
        return None
    widths = (_width(configs[0]), _width(configs[1]))
    return match_draft(tokenizer, target, draft, widths, may_differ=options.match_vocabularies == "intersection")


def _matched(vocabulary: VocabularyMap | None) -> Literal["exact", "intersection"]:
    return "exact" if vocabulary is None else "intersection"


def _width(config: Any) -> int:
    return int(config.get_text_config(decoder=True).vocab_size)


def _load_target(
    options: ModelOptions, source: Path | str, config: Any, dtype: torch.dtype, device: torch.device
) -> Any:
    adapter = None if options.adapter is None else resolve_adapter(options.adapter)
    method = quantization_method(config)
    if adapter is not None and method is not None:
        raise ConfigError(f"got an adapter for weights quantised by {method}; merge it before they are quantised")
    # A merge in half precision would round small updates away.
    wide = dtype if adapter is None else torch.promote_types(dtype, torch.float32)
    model = load_causal_model(
        source,
        "target",
        config,
        dtype=wide,
        device=device,
        device_map=options.device_map,
        revision=options.revision,
    )
    return _sized(model if adapter is None else merge_adapter(model, adapter, dtype), options.target_shape)


def _load_draft(
    options: ModelOptions, source: Path | str, config: Any, dtype: torch.dtype, device: torch.device
) -> Any:
    model = load_causal_model(source, "draft", config, dtype=dtype, device=device)
    if isinstance(source, Path) and options.draft_shape is None:
        load_head(model, source)
    return _sized(model, options.draft_shape)


def _sized(model: Any, shape: str | None) -> Any:
    """The model, or its cost twin where a shape is named."""
    return model if shape is None else enlarge(model, find_shape(shape), shape)


def _serve_draft(options: ModelOptions, model: Any, vocab_size: int, vocabulary: VocabularyMap | None) -> ModelRunner:
    if vocabulary is None:
        return _serve(options, model, vocab_size)
    return TranslatedRunner(_serve(options, model, None), vocabulary)


def _serve(options: ModelOptions, model: Any, vocab_size: int | None) -> TransformersRunner:
    """A runner with tree attention and packed weights, probed once unless the tests cover its type."""
    fuses = options.fused == "auto"
    if options.quantization == "int8":
        # Rounding to 8 bits would drown what the probe looks for.
        _probe(TransformersRunner(model, vocab_size=vocab_size))
        quantise_linears(model)
        runner = TransformersRunner(model, vocab_size=vocab_size, fuses=fuses)
    else:
        pack_linears(model)
        runner = TransformersRunner(model, vocab_size=vocab_size, fuses=fuses)
        _probe(runner)
    runner.attach()
    return runner


def _probe(runner: TransformersRunner) -> None:
    if runner.model.config.model_type not in TESTED_MODEL_TYPES:
        check_tree_logits(runner)
