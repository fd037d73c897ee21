"""Text from the target: answers to prompts, and prompts that it writes itself in its user's turn."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor

from mtad.api.prompts import Prompt, PromptFormat, encode_prompts
from mtad.config import DistillOptions
from mtad.config.distillation import CPU_SAMPLING_BATCH, TOKENS
from mtad.distill.fast_sampling import DeviceSampler, no_tree, samples_fast
from mtad.distill.store import Text, TextStore
from mtad.distill.team import Team
from mtad.distill.work import training_memory_errors
from mtad.errors import CapacityError, DistillError, PromptError
from mtad.models.loading import LoadedModels
from mtad.models.runner import ModelRunner

TEMPERATURES = (1.0, 1.0, 0.7)
"""Of the batches in turn, unfiltered: drafts are asked about likely text as well as about the target's whole law."""
SAMPLING_SHARE = 0.4
"""Of a time budget."""
_MARK = "mtad-user-turn"
_SELF_WRITTEN_TOKENS = 64
_MOST_EMPTY_BATCHES = 10

Note = Callable[[str, float, str], None]
"""Called with a stage, how much of it is done (0 to 1), and a few words."""


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        given: Token ids of the user's prompts.
        opening: Token ids in front of what a user would write.
        template: Turns written texts into the token ids of prompts; None continues the opening as it is.
    """

    given: Sequence[list[int]]
    opening: list[int]
    template: Callable[[Sequence[str]], list[list[int]]] | None


def read_source(models: LoadedModels, prompts: Iterable[Prompt], options: DistillOptions) -> PromptSource:
    """Encode the prompts, and find the target's user turn.

    Raises:
        PromptError: No prompt is short enough.
        DistillError: The tokenizer names no token to begin a text with.
    """
    tokenizer = models.tokenizer
    style = PromptFormat()
    encoded = encode_prompts(tokenizer, list(prompts), style)
    given = [item for item in encoded if len(item) <= options.prompt_tokens]
    if encoded and not given:
        raise PromptError(
            f"got {len(encoded)} prompts, all longer than {options.prompt_tokens} tokens; raise --prompt-tokens"
        )
    if getattr(tokenizer, "chat_template", None) is not None:
        before, mark, _ = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False).partition(
            _MARK
        )
        if mark and before:
            opening = list(tokenizer(before, add_special_tokens=False, verbose=False)["input_ids"])
            return PromptSource(given, opening, lambda texts: encode_prompts(tokenizer, texts, style))
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise DistillError("the target's tokenizer has no token that begins a text; give texts with --prompts")
    return PromptSource(given, [int(first)], None)


def sample_texts(
    models: LoadedModels,
    source: PromptSource,
    store: TextStore | None,
    options: DistillOptions,
    note: Note,
    team: Team | None = None,
) -> None:
    """Fill the store until it holds enough tokens or the budget's share is spent.

    Batch n depends on the seed and n alone, so a killed run continues with the same texts, and so do several processes
    that sample the next batches side by side.

    Args:
        models: The target, switched to tree attention.
        source: The prompts.
        store: Filled; None in processes that do not lead.
        options: How much.
        note: Told about every batch.
        team: The processes that sample.

    Raises:
        CapacityError: Answers exceed what the target reads, or the memory is not there.
        DistillError: The target writes nothing, or the disk is full.
    """
    if _room(models.target, options) < len(source.opening) + 2:
        raise CapacityError(
            f"the target reads at most {models.target.max_positions} tokens, got answers of {options.answer_tokens}; "
            "lower --answer-tokens"
        )
    sampler = find_sampler(models, options)
    team = team or Team()
    state = team.lead(lambda: _progress(store, options))
    while not state["is_finished"]:
        note("sample", min(state["done"], 1.0), f"{state['rate']:.0f} tokens/s" if state["rate"] else "")
        started = time.perf_counter()
        with training_memory_errors():
            texts = _sample_batch(models, sampler, source, state["batches"] + team.rank, options)
        batches, seconds = team.gather(texts), time.perf_counter() - started
        state = team.lead(lambda found=batches, spent=seconds: _store(store, found, spent, options))  # type: ignore[misc]
    note("sample", 1.0, "")
    models.target.release()


def _progress(store: TextStore | None, options: DistillOptions) -> dict[str, Any]:
    """What the store holds, the share that is done, and the rate; ends it when there is enough."""
    assert store is not None, "the leading process has the store"
    seconds, tokens = store.state["seconds"], store.state["tokens"]
    wanted = options.tokens or (TOKENS if options.budget_s is None else None)
    done = 0.0 if wanted is None else tokens / wanted
    if options.budget_s is not None:
        done = max(done, seconds / (SAMPLING_SHARE * options.budget_s))
    if done >= 1 and store.state["texts"] >= 2:
        store.finish()
    if store.state["batches"] >= _MOST_EMPTY_BATCHES and not store.state["texts"]:
        raise DistillError(
            f"the target wrote nothing in {_MOST_EMPTY_BATCHES} batches; give prompts with --prompts, or check "
            "the target's chat template and end-of-text token"
        )
    return store.state | {"done": done, "rate": tokens / seconds if seconds else 0.0}


def _store(
    store: TextStore | None, batches: list[list[Text]], seconds: float, options: DistillOptions
) -> dict[str, Any]:
    """Append batches in order until there is enough, whoever sampled them."""
    assert store is not None, "the leading process has the store"
    state: dict[str, Any] = {"is_finished": False}
    for batch in batches:
        if not state["is_finished"]:
            store.append(batch, seconds / len(batches))
            state = _progress(store, options)
    return state


def _sample_batch(
    models: LoadedModels, sampler: "Sampler", source: PromptSource, number: int, options: DistillOptions
) -> list[Text]:
    generator = torch.Generator().manual_seed(hash((options.seed, number)) % 2**62)
    random = Random(f"{options.seed} {number}")
    temperature = TEMPERATURES[number % len(TEMPERATURES)]
    own = [not source.given or random.random() < options.self_written for _ in range(_rows(options))]
    prompts = [random.choice(source.given) for is_own in own if not is_own]
    if source.template is None:
        prompts += [source.opening] * sum(own)
    elif any(own):
        written = sampler.sample([source.opening] * sum(own), _SELF_WRITTEN_TOKENS, 1.0, generator)
        texts = [models.tokenizer.decode(item, skip_special_tokens=True).strip() for item in written]
        prompts += source.template([text for text in texts if text])
    prompts = [item for item in prompts if len(item) <= _room(models.target, options)]
    answers = sampler.sample(prompts, options.answer_tokens, temperature, generator) if prompts else []
    return [Text(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True) if answer]


def _rows(options: DistillOptions) -> int:
    return options.sampling_batch or CPU_SAMPLING_BATCH


def _room(target: ModelRunner, options: DistillOptions) -> int:
    limit = target.max_positions
    return 2**30 if limit is None else limit - options.answer_tokens - 1


class Sampler(Protocol):
    """Continues prompts with tokens of the target."""

    def sample(
        self, prompts: Sequence[list[int]], limit: int, temperature: float, generator: torch.Generator
    ) -> list[list[int]]:
        """See `TextSampler.sample`."""
        ...


def find_sampler(models: LoadedModels, options: DistillOptions) -> Sampler:
    """The fastest sampler for a target, where it is."""
    ends = models.defaults.eos_token_ids
    if not samples_fast(models.target):
        return TextSampler(models.target, ends)
    capacity = min(options.prompt_tokens + options.answer_tokens + 1, models.target.max_positions or 2**30)
    return DeviceSampler(models.target, ends, rows=_rows(options), capacity=capacity)


class TextSampler:
    """Draws from the target one token at a time, for many rows at once.

    Args:
        target: With tree attention.
        eos_token_ids: Tokens that end a text; they are kept.
    """

    def __init__(self, target: ModelRunner, eos_token_ids: Iterable[int]) -> None:
        self.target = target
        self._ends = torch.tensor(sorted(eos_token_ids), dtype=torch.int64, device=target.device)

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[list[int]], limit: int, temperature: float, generator: torch.Generator
    ) -> list[list[int]]:
        """Continue every prompt by up to `limit` tokens, unfiltered.

        Args:
            prompts: Token ids, none empty.
            limit: Longest continuation.
            temperature: Above 0.
            generator: On the CPU; advanced.
        """
        lengths = torch.tensor([len(item) for item in prompts], device=self.target.device)
        tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64, device=self.target.device)
        for row, item in enumerate(prompts):
            tokens[row, : len(item)] = torch.tensor(item)
        self.target.allocate(len(prompts), tokens.shape[1] + limit + 1)
        self.target.prefill(tokens, lengths - 1)
        pending = tokens.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
        answers: list[list[int]] = [[] for _ in prompts]
        rows = torch.arange(len(prompts), device=self.target.device)
        alive = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(limit):
            pending = self._step(pending, alive, temperature, generator)
            for row, token, is_alive in zip(rows.tolist(), pending.tolist(), alive.tolist(), strict=True):
                if is_alive:
                    answers[row].append(token)
            alive &= ~torch.isin(pending, self._ends)
            kept = alive.nonzero().squeeze(1)
            if not len(kept):
                break
            if 2 * len(kept) <= len(rows):
                self.target.select_rows(kept)
                rows, pending, alive = rows[kept], pending[kept], alive[kept]
        return answers

    def _step(self, pending: Tensor, alive: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        tree = no_tree(len(pending), pending.device)
        logits = self.target.score_tree(pending, tree)[:, 0].float() / temperature
        # Gumbel's trick, with noise from the CPU: the same text on every device, up to rounding.
        noise = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
        drawn = (logits - noise.log()).argmax(-1)
        self.target.keep_path(tree.tokens, torch.zeros_like(pending), alive)
        return drawn
