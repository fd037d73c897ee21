"""Examines a pair on this machine: vocabularies, costs, overlap, speed of the methods, and a verdict."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mtad.api import Engine, Prompt
from mtad.api.contenders import in_turns
from mtad.config import DistillOptions, GenerationOptions, ModelOptions
from mtad.distill.cost_model import PairCosts, best_length, expected_tokens, measure_costs, predicted_speedup
from mtad.distill.pairing import load_pair, pair_overlap
from mtad.distill.sampling import Note, TextSampler, read_source
from mtad.distill.store import Text
from mtad.models.loading import LoadedModels
from mtad.results.provenance import describe_run
from mtad.structures import GenerationResult

WORTHWHILE = 1.1
"""Measured speed against the target alone from which a draft is worth its memory."""
GOOD_OVERLAP = 0.6
_BASELINE = "autoregressive"
_PROMPT_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How thoroughly to look.

    Attributes:
        timings: Rounds of timing single calls.
        texts: Texts that the overlap is measured on.
        repeats: Measured answers of every method.
        new_tokens: Tokens of each.
    """

    timings: int = 15
    texts: int = 24
    repeats: int = 5
    new_tokens: int = 96


QUICK = Effort(timings=5, texts=8, repeats=3, new_tokens=32)


def examine(options: ModelOptions, prompts: Sequence[Prompt], effort: Effort, note: Note) -> dict[str, Any]:
    """Everything that is worth knowing about a pair, ready for JSON.

    Args:
        options: The pair; its vocabularies are matched as they can be.
        prompts: What the target answers for it; without any it writes prompts itself.
        effort: How thoroughly.
        note: Told about progress.

    Raises:
        ModelLoadError: A model cannot be loaded.
        PromptError: No prompt is short enough.
    """
    pairing = load_pair(options)
    report: dict[str, Any] = {
        "models": asdict(options),
        "run": describe_run(),
        "threads": torch.get_num_threads(),
        "tokenizers": {"fit": pairing.fit, "words": pairing.words},
    }
    models = pairing.models
    if models is None or models.draft is None:
        return report | {"verdict": judge(options, pairing.fit, None, None, ())}
    report["models"] = asdict(models.options)
    note("cost", 0.0, "")
    (costs,) = measure_costs(models.target, [models.draft], effort.timings)
    note("overlap", 0.0, "")
    texts = write_texts(models, prompts, effort)
    overlap, places = pair_overlap(models.target, models.draft, texts)
    methods = choose_methods(overlap, costs)
    figures = measure_methods(
        models, methods, [text.token_ids[: text.num_prompt_tokens] for text in texts], effort, note
    )
    for figure in figures:
        figure["predicted_speedup"] = _predict(methods[figure["method"]], figure, overlap, costs)
    return report | {
        "costs": asdict(costs),
        "overlap": {"value": overlap, "places": places},
        "methods": figures,
        "verdict": judge(models.options, pairing.fit, costs, overlap, figures),
    }


def write_texts(models: LoadedModels, given: Sequence[Prompt], effort: Effort) -> list[Text]:
    """Answers of the target at temperature 1, to the given prompts or to prompts of its own."""
    source = read_source(models, given, DistillOptions(answer_tokens=effort.new_tokens))
    sampler = TextSampler(models.target, models.defaults.eos_token_ids)
    generator = torch.Generator().manual_seed(0)
    room = (models.target.max_positions or 2**30) // 3
    if source.given:
        step = max(len(source.given) // effort.texts, 1)
        prompts = list(source.given[::step][: effort.texts])
    else:
        prompts = [source.opening] * effort.texts
        if source.template is not None:
            written = sampler.sample(prompts, min(_PROMPT_TOKENS, room), 1.0, generator)
            said = [models.tokenizer.decode(item, skip_special_tokens=True).strip() for item in written]
            prompts = source.template([text for text in said if text]) or prompts
    answers = sampler.sample(prompts, min(effort.new_tokens, room), 1.0, generator)
    return [Text(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


def choose_methods(overlap: float, costs: PairCosts) -> dict[str, GenerationOptions]:
    """What to compare, by label; speculative sampling drafts as long as the formula says."""
    gamma = best_length(overlap, costs)[0]
    base = GenerationOptions().for_measurement()
    return {
        _BASELINE: replace(base, method=_BASELINE),
        f"speculative:gamma={gamma}": replace(base, method="speculative", gamma=gamma),
        "mtad": replace(base, method="mtad"),
        "mmtad": replace(base, method="mmtad"),
        "mmtad:gamma=4,beam_width=4,threshold=0.9": replace(base, method="mmtad", gamma=4, beam_width=4, threshold=0.9),
    }


def measure_methods(
    models: LoadedModels,
    methods: dict[str, GenerationOptions],
    prompts: Sequence[list[int]],
    effort: Effort,
    note: Note,
) -> list[dict[str, Any]]:
    """Time the methods in turns on the same prompts and seeds, each after one answer to warm up.

    Returns:
        One dictionary a method: tokens per call, share of calls that kept 1, 2, ... drafted tokens, and the median,
        smallest and largest speed against the target alone.
    """
    engine = Engine(models)
    found: dict[str, list[GenerationResult]] = {label: [] for label in methods}
    labels = list(methods)
    limit = models.target.max_positions or 2**30
    for repeat in range(-1, effort.repeats):
        prompt = prompts[max(repeat, 0) % len(prompts)]
        count = max(min(effort.new_tokens, limit - len(prompt) - 1), 1)
        for label in in_turns(labels, max(repeat, 0)):
            options = replace(methods[label], seed=max(repeat, 0), max_new_tokens=count, ignore_eos=True)
            (result,) = engine.generate([prompt], options)
            if repeat >= 0:
                found[label].append(result)
        note("methods", (repeat + 2) / (effort.repeats + 1), "")
    return [_figures(label, results, found[_BASELINE]) for label, results in found.items()]


def judge(
    options: ModelOptions,
    fit: str,
    costs: PairCosts | None,
    overlap: float | None,
    figures: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The verdict in one word (`use`, `train` or `do not use`), the reason, and the command to go on with."""
    adapter = "" if options.adapter is None else f" --adapter {options.adapter}"
    training = f"mtad distill --target {options.target}{adapter} --out draft --size auto"
    if costs is None or overlap is None:
        return {"verdict": "train", "reason": "the draft does not read the target's tokens", "command": training}
    best = max((item for item in figures if item["method"] != _BASELINE), key=lambda item: item["speedup"]["median"])
    speed = best["speedup"]["median"]
    if speed >= WORTHWHILE:
        reason = f"{best['method']} is {speed:.2f} times as fast as the target alone"
        return {"verdict": "use", "reason": reason, "command": _settings(options, fit, adapter, best["method"])}
    lost = f"no method is {WORTHWHILE:g} times as fast as the target alone (best: {best['method']}, {speed:.2f})"
    possible = best_length(max(overlap, GOOD_OVERLAP), costs)[1]
    if costs.draft > 0.5:
        reason = f"{lost}: one call of the draft costs {costs.draft:.2f} of the target's; a smaller one may help"
        return {"verdict": "do not use", "reason": reason, "command": training}
    if overlap < GOOD_OVERLAP and possible >= WORTHWHILE:
        reason = f"{lost}: its overlap is {overlap:.2f}; one of {GOOD_OVERLAP:g} at its cost would give {possible:.2f}"
        return {"verdict": "train", "reason": reason, "command": training}
    reason = f"{lost}: the target's calls for several tokens and the draft's cost more than they save here"
    return {"verdict": "do not use", "reason": reason, "command": None}


def _settings(options: ModelOptions, fit: str, adapter: str, word: str) -> str:
    method, _, changes = word.partition(":")
    parts = ["mtad generate", f"--target {options.target}{adapter}", f"--draft {options.draft}"]
    parts += [] if options.quantization == "none" else [f"--quantization {options.quantization}"]
    parts += ["--match-vocabularies intersection"] if fit == "translated" else []
    parts += [f"--method {method}"]
    parts += [f"--{part.replace('_', '-').replace('=', ' ')}" for part in changes.split(",") if part]
    return " ".join(parts)


def _figures(label: str, results: list[GenerationResult], baseline: list[GenerationResult]) -> dict[str, Any]:
    ratios = [own.stats.tokens_per_s / alone.stats.tokens_per_s for own, alone in zip(results, baseline, strict=True)]
    calls = sum(item.stats.target_calls for item in results)
    depths = max(len(item.stats.acceptance_by_depth) for item in results)
    kept = [
        sum(item.stats.acceptance_by_depth[depth] * item.stats.target_calls for item in results) / max(calls, 1)
        for depth in range(depths)
    ]
    return {
        "method": label,
        "tokens_per_call": sum(item.stats.num_tokens for item in results) / max(calls, 1),
        "acceptance_by_depth": kept,
        "tokens_per_s": statistics.median(item.stats.tokens_per_s for item in results),
        "speedup": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }


def _predict(options: GenerationOptions, figure: dict[str, Any], overlap: float, costs: PairCosts) -> float:
    """From the overlap alone for speculative sampling, else from the tokens per call that were seen."""
    gamma = options.gamma
    if options.method == _BASELINE:
        return 1.0
    if options.method == "speculative":
        return predicted_speedup(expected_tokens(overlap, gamma), costs.draft, costs.verify[gamma], gamma)
    # The winner of the beams is a chain; all of them are a tree of as many nodes a level.
    nodes = gamma if options.method == "mtad" else gamma * options.beam_width
    return predicted_speedup(figure["tokens_per_call"], costs.draft_level, costs.verify[nodes], gamma)
