"""`custom_generate`: multi-token joint decoding behind `model.generate` of transformers."""

import inspect
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.utils import GenerateDecoderOnlyOutput

from mtad.api.transformers_settings import (
    check_generation_config,
    check_model_arguments,
    other_criteria,
    read_constraints,
    read_eos_token_ids,
    read_max_length,
    read_prompts,
    split_processors,
)
from mtad.config import GenerationOptions, replace_settings
from mtad.decoding import AnswerLimits, Request, RunFacts, build_decoder, generate_pieces, needs_draft_model
from mtad.errors import CapacityError, ConfigError, VocabularyMismatchError
from mtad.models.architecture import TESTED_MODEL_TYPES
from mtad.models.matching import map_vocabulary
from mtad.models.probe import check_tree_logits
from mtad.models.runner import ModelRunner
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.translated_runner import TranslatedRunner
from mtad.structures import Piece, RowSettings

WIDEST_PADDING = 512
"""Rows by which embeddings of one vocabulary may be padded apart. No tokenizer is at hand here to compare."""


def custom_generate(  # noqa: PLR0913 - transformers reads the names of its extra settings off this signature
    model: Any,
    input_ids: Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    generation_config: Any = None,
    *,
    streamer: Any = None,
    assistant_model: Any = None,
    draft_model: Any = None,
    mtad_method: str | None = None,
    gamma: int | None = None,
    beam_width: int | None = None,
    threshold: float | None = None,
    draw: str | None = None,
    target_tokenizer: Any = None,
    draft_tokenizer: Any = None,
    **model_arguments: Any,
) -> Any:
    """Decode inside `model.generate(..., assistant_model=draft, custom_generate=mtad.custom_generate)`.

    The usual arguments keep their meaning: left-padded batches, `max_new_tokens`, `do_sample`, `temperature`, `top_k`,
    `top_p`, `min_p`, `repetition_penalty` and whatever else becomes a logits processor, `logits_processor`,
    `eos_token_id`, `stopping_criteria`, `streamer`, `return_dict_in_generate`, `num_return_sequences`;
    `torch.manual_seed` fixes the draws. Logits processors are called on the host at every tree node. The draft may also
    be passed as `draft_model=draft`, or bound beforehand with
    `functools.partial(mtad.custom_generate, draft_model=draft)`. The models' own attention is restored afterwards. For
    stop strings pass `stopping_criteria=[StopStringCriteria(tokenizer, [...])]`: transformers (5.23) keeps the
    tokenizer from callables and then refuses `stop_strings`.

    Args:
        model: The target.
        input_ids: Prompts, `[batch, tokens]` int64.
        logits_processor: What `generate` prepared; those before the warp are called at every place of the text.
        stopping_criteria: What `generate` prepared; criteria are asked after every token of a row.
        generation_config: What `generate` prepared.
        streamer: Receives the tokens of a single prompt.
        assistant_model: The draft.
        draft_model: The same, and comes first.
        mtad_method: `mmtad` (default), `mtad`, `speculative`, `autoregressive`, `beam_sampling`,
            `dynamic_beam` or `mtjd`.
        gamma: Tokens drafted per iteration.
        beam_width: Beams of the draft.
        threshold: tau in (0, 1].
        draw: `top`, `gumbel` or `sample`.
        target_tokenizer: The target's, where the draft has a vocabulary of its own; given with the next. (Of its own
            `tokenizer` and `assistant_tokenizer` transformers tells callables nothing.)
        draft_tokenizer: The draft's. Only tokens that both have are drafted.
        **model_arguments: What `generate` prepared for the model call.

    Returns:
        Prompts and answers, `[batch, tokens]` int64, filled up with the pad token; or a
        `GenerateDecoderOnlyOutput` with these `sequences`.

    Raises:
        ConfigError: A setting is out of bounds, or asks for what mtad does not compute.
        UnsupportedModelError: A model that tree attention cannot serve.
        VocabularyMismatchError: Target and draft do not share a vocabulary, or too little of it.
        CapacityError: Prompt and answer do not fit a model.
    """
    caller = _generate_arguments(model)
    drafts = (draft_model, assistant_model, caller.get("assistant_model"))
    draft = next((item for item in drafts if item is not None), None)
    check_generation_config(generation_config)
    check_model_arguments(model_arguments)
    knobs = {"method": mtad_method, "gamma": gamma, "beam_width": beam_width, "threshold": threshold, "draw": draw}
    options = _options(knobs, read_max_length(stopping_criteria, generation_config) - input_ids.shape[1])
    called, warp = split_processors(logits_processor, do_sample=bool(generation_config.do_sample))
    prompts = read_prompts(input_ids, model_arguments.get("attention_mask"))
    settings = RowSettings(
        temperature=warp.temperature,
        top_k=warp.top_k,
        top_p=warp.top_p,
        min_p=warp.min_p,
        threshold=options.threshold,
        draft_confidence=options.draft_confidence,
    )
    rows = [replace(settings, constraints=item) for item in read_constraints(called, input_ids, prompts)]
    requests = _requests(options, rows, prompts, input_ids, stopping_criteria)
    pieces = _decode(options, model, draft, requests, _tokenizers(target_tokenizer, draft_tokenizer))
    answers = _collect(pieces, len(requests), caller.get("streamer") if streamer is None else streamer)
    sequences = _append(input_ids, answers, _pad_token_id(generation_config))
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]


def _generate_arguments(model: Any) -> dict[str, Any]:
    """Arguments of the running `model.generate`, or nothing where it is not on the stack.

    transformers (5.23) hands a callable neither `assistant_model` nor `streamer`, though both are named arguments
    of `generate`, so they are read from the frame of the call.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is model:
            return {name: frame.f_locals.get(name) for name in ("assistant_model", "streamer")}
        frame = frame.f_back
    return {}


def _options(knobs: dict[str, Any], max_new_tokens: int) -> GenerationOptions:
    given = {name: value for name, value in knobs.items() if value is not None}
    return replace_settings(GenerationOptions(), given | {"max_new_tokens": max_new_tokens}, "generate")


def _requests(
    options: GenerationOptions,
    rows: list[RowSettings],
    prompts: list[list[int]],
    input_ids: Tensor,
    stopping_criteria: Sequence[Any],
) -> list[Request]:
    """One request a row; the seeds come from torch's generator, as the draws of stock sampling do."""
    seeds = [0] * len(prompts) if rows[0].temperature == 0 else torch.randint(2**62, (len(prompts),)).tolist()
    limits = AnswerLimits(max_new_tokens=options.max_new_tokens, eos_token_ids=read_eos_token_ids(stopping_criteria))
    return [
        Request(
            row=row,
            prompt=prompt,
            settings=replace(rows[row], seed=seeds[row]),
            limits=replace(limits, ends_after=other_criteria(stopping_criteria, input_ids[row])),
        )
        for row, prompt in enumerate(prompts)
    ]


def _tokenizers(target: Any, draft: Any) -> tuple[Any, Any] | None:
    """Both tokenizers, or None where neither is given."""
    if (target is None) != (draft is None):
        given, missing = ("target", "draft") if draft is None else ("draft", "target")
        raise ConfigError(f"got {given}_tokenizer alone, expected both; pass {missing}_tokenizer=... as well")
    return None if target is None else (target, draft)


def _decode(
    options: GenerationOptions, model: Any, draft: Any, requests: list[Request], tokenizers: tuple[Any, Any] | None
) -> Generator[Piece, None, None]:
    """Decode with both models on tree attention, which is taken off them again however decoding ends."""
    wants_draft = needs_draft_model(options)
    if wants_draft and draft is None:
        raise ConfigError(
            f"method {options.method} needs a draft model; pass assistant_model=... or draft_model=..., or choose "
            "mtad_method='autoregressive'"
        )
    target_runner = _runner(model)
    draft_runner = _draft_runner(draft, target_runner) if wants_draft else None
    drafting = None if draft_runner is None else _match(draft_runner, target_runner, tokenizers)
    for runner in (target_runner, draft_runner):
        if runner is not None:
            _check_room(runner, requests)
    decoder = build_decoder(
        options,
        target_runner,
        drafting,
        requests[0].limits.eos_token_ids,
        temperature=requests[0].settings.temperature,
        is_constrained=any(item.settings.constraints for item in requests),
    )
    with ExitStack() as stack:
        stack.enter_context(target_runner.attached())
        if draft_runner is not None:
            stack.enter_context(draft_runner.attached())
        yield from generate_pieces(
            decoder, requests, lambda token_ids: "", RunFacts(method=options.method, gamma=decoder.gamma)
        )


def _runner(model: Any, vocab_size: int | None = None) -> TransformersRunner:
    runner = TransformersRunner(model, vocab_size=vocab_size)
    if model.config.model_type not in TESTED_MODEL_TYPES:
        check_tree_logits(runner)
    return runner


def _draft_runner(draft: Any, target: TransformersRunner) -> TransformersRunner:
    runner = _runner(draft)
    if runner.device != target.device:
        raise ConfigError(f"got a draft on {runner.device}, expected it beside the target; move it to {target.device}")
    return runner


def _match(draft: TransformersRunner, target: TransformersRunner, tokenizers: tuple[Any, Any] | None) -> ModelRunner:
    """The draft in the target's vocabulary: as it is, cut to a common width, or translated."""
    if tokenizers is not None and tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        vocabulary = map_vocabulary(*tokenizers, (target.vocab_size, draft.vocab_size))
        return TranslatedRunner(draft, vocabulary)
    if abs(draft.vocab_size - target.vocab_size) > WIDEST_PADDING:
        raise VocabularyMismatchError(
            f"got a draft with {draft.vocab_size} tokens, expected the target's {target.vocab_size}; use a draft made "
            "for this target, or pass target_tokenizer=... and draft_tokenizer=... to draft the tokens that both have"
        )
    draft.vocab_size = target.vocab_size = min(draft.vocab_size, target.vocab_size)
    return draft


def _check_room(runner: TransformersRunner, requests: list[Request]) -> None:
    needed = max(len(item.prompt) + item.limits.max_new_tokens for item in requests)
    if runner.max_positions is not None and needed > runner.max_positions:
        raise CapacityError(
            f"prompt and answer need {needed} positions, but {type(runner.model).__name__} has {runner.max_positions}; "
            "lower max_new_tokens or shorten the prompt"
        )


def _collect(pieces: Generator[Piece, None, None], count: int, streamer: Any) -> list[list[int]]:
    """Run the decoding; the answer's token ids of every row."""
    if streamer is not None and count > 1:
        raise ConfigError(f"got a streamer for {count} rows, expected one prompt; leave out streamer")
    answers: list[list[int]] = [[] for _ in range(count)]
    with closing(pieces):
        for piece in pieces:
            answers[piece.row].extend(piece.token_ids)
            if streamer is not None:
                for token_id in piece.token_ids:
                    streamer.put(torch.tensor([token_id]))
    if streamer is not None:
        streamer.end()
    return answers


def _append(input_ids: Tensor, answers: list[list[int]], pad_token_id: int) -> Tensor:
    longest = max(len(answer) for answer in answers)
    padded = [answer + [pad_token_id] * (longest - len(answer)) for answer in answers]
    return torch.cat([input_ids, input_ids.new_tensor(padded)], 1)


def _pad_token_id(generation_config: Any) -> int:
    """The pad token, else the first EOS as in transformers, else 0."""
    eos = generation_config.eos_token_id
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    candidates = (generation_config.pad_token_id, first_eos, 0)
    return int(next(item for item in candidates if item is not None))
