"""Settings and prompts become requests that decoding understands."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mtad.api.constraints import ConstraintReader, read_grammar_files
from mtad.config import GenerationOptions
from mtad.decoding import AnswerLimits, Request, exit_layers, needs_draft_model, resolve_pair
from mtad.errors import CapacityError
from mtad.models.loading import LoadedModels
from mtad.models.runner import ModelRunner
from mtad.structures import LogitsProcessor, RowConstraints, RowSettings


class RequestReader:
    """Resolves settings for one pair of models and makes requests of token ids.

    Args:
        models: What `load_models` returned.
    """

    def __init__(self, models: LoadedModels) -> None:
        self._models = models
        eos = models.defaults.eos_token_ids
        self._constraints = ConstraintReader(models.tokenizer, models.target.vocab_size, eos)

    def resolve(self, options: GenerationOptions) -> GenerationOptions:
        """See `Engine.resolve`."""
        defaults = self._models.defaults
        choices = {
            "temperature": (options.temperature, defaults.temperature, 1.0),
            "top_k": (options.top_k, defaults.top_k, 10),
            "top_p": (options.top_p, defaults.top_p, 0.9),
            "min_p": (options.min_p, defaults.min_p, 0.0),
            # Methods without a draft take no penalty, so the model's own is no default there.
            "repetition_penalty": (
                options.repetition_penalty,
                defaults.repetition_penalty if resolve_pair(options) else None,
                1.0,
            ),
        }
        filled: dict[str, Any] = {
            name: next(value for value in values if value is not None) for name, values in choices.items()
        }
        filled["seed"] = options.seed or 0
        filled["guard"] = ("on" if options.seed is None else "off") if options.guard == "auto" else options.guard
        filled["compile"] = self._compile_choice(options)
        filled["exit_layers"] = exit_layers(options, self._models.target)
        return replace(read_grammar_files(options), **filled)

    def _compile_choice(self, options: GenerationOptions) -> str:
        if options.compile != "auto":
            return options.compile
        is_free = options.seed is None and self._models.target.device.type == "cuda"
        return "background" if is_free else "off"

    def constraints(
        self, options: GenerationOptions, logits_processor: Sequence[LogitsProcessor] = ()
    ) -> RowConstraints:
        """See `ConstraintReader.read`."""
        return self._constraints.read(options, logits_processor)

    def eos_token_ids(self, options: GenerationOptions) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset() if options.ignore_eos else self._models.defaults.eos_token_ids

    def request(
        self,
        row: int,
        prompt: Sequence[int],
        options: GenerationOptions,
        constraints: RowConstraints,
        *,
        name: str = "the prompt",
        max_tokens: int | None = None,
    ) -> Request:
        """A prompt with its settings and limits.

        Args:
            row: Its index in the call, or its ticket.
            prompt: Token ids.
            options: Resolved settings.
            constraints: What changes its logits.
            name: What errors call it.
            max_tokens: Tokens of prompt and answer there is room for, beside the models' own limits.

        Raises:
            CapacityError: The prompt leaves no room for an answer.
        """
        limits = [limit for limit in (self._position_limit(options), max_tokens) if limit is not None]
        limit = min(limits, default=None)
        if limit is not None and len(prompt) >= limit:
            holder = "a row of the session holds" if limit == max_tokens else "the models read"
            raise CapacityError(
                f"{name} has {len(prompt)} tokens, but {holder} at most {limit}, the answer included; "
                "shorten the prompt"
            )
        room = options.max_new_tokens if limit is None else min(options.max_new_tokens, limit - len(prompt))
        return Request(
            row=row,
            prompt=prompt,
            settings=_row_settings(options, constraints),
            limits=AnswerLimits(
                max_new_tokens=room, eos_token_ids=self.eos_token_ids(options), stop=tuple(options.stop)
            ),
        )

    def _position_limit(self, options: GenerationOptions) -> int | None:
        runners: list[ModelRunner] = [self._models.target]
        if needs_draft_model(options) and self._models.draft is not None:
            runners.append(self._models.draft)
        limits = [runner.max_positions for runner in runners if runner.max_positions is not None]
        return min(limits, default=None)


def _row_settings(options: GenerationOptions, constraints: RowConstraints) -> RowSettings:
    assert options.temperature is not None
    assert options.top_k is not None
    assert options.top_p is not None
    assert options.min_p is not None
    return RowSettings(
        seed=options.seed or 0,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        threshold=options.threshold,
        draft_confidence=options.draft_confidence,
        min_p=options.min_p,
        constraints=constraints,
        top_logprobs=options.top_logprobs,
    )
