"""Searches the fastest settings that keep to a budget."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtad.api import Engine, PromptFormat
from mtad.api.contenders import Contender, parse_contenders
from mtad.api.rejudging import judge_again
from mtad.config import GenerationOptions
from mtad.errors import ConfigError
from mtad.evaluation.budgets import Budget, Verdict, judge
from mtad.evaluation.plan import Entrant, EvaluationPlan, TaskItems
from mtad.evaluation.running import run_evaluation
from mtad.results.comparison import BASELINE

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
SHAPES = (
    "mtad:gamma=3,beam_width=3",
    "mmtad:gamma=2,beam_width=3",
    "mmtad:gamma=3,beam_width=3",
    "mmtad:gamma=4,beam_width=4",
)
LOSSLESS = (
    "speculative:gamma=2",
    "speculative:gamma=3",
    "speculative:gamma=4",
    "block:gamma=3",
    "block:gamma=4",
)
_NUM_TRACED = 6
_NUM_FINALISTS = 3
_ALLOWANCE = 1.05
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What a trace says about one threshold of one shape.

    Attributes:
        word: The contender as it is spelled.
        tokens_per_s: Predicted: the judged tokens per call by the recorded seconds per call.
        perplexity: Judged.
    """

    word: str
    tokens_per_s: float
    perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a calibration has found.

    Attributes:
        contender: The fastest that keeps to the budget.
        verdict: On the items that it was chosen by.
        rows: Its rows there.
        unseen: Its rows on the items that nothing was chosen by.
        unseen_verdict: The same verdict there.
        guesses: What the traces said.
    """

    contender: Contender
    verdict: Verdict
    rows: list[dict[str, Any]]
    unseen: list[dict[str, Any]]
    unseen_verdict: Verdict
    guesses: list[Guess]


def calibrate(
    engine: Engine, plan: EvaluationPlan, base: GenerationOptions, budget: Budget, folder: Path, note: Note
) -> Choice:
    """Choose settings on every other item and check them on the rest.

    Traces of a few items are judged at all thresholds first; only the most promising settings are run on all items.

    Args:
        engine: The models.
        plan: Tasks with their items, seeds and batch size; its entrants do not matter.
        base: Settings that all candidates share.
        budget: What must hold.
        folder: Gets the runs, in `chosen_on` and `checked_on`.
        note: Called as things get done.

    Raises:
        ConfigError: Too few items, or a budget that the tasks say nothing about.
    """
    if min(len(group.items) for group in plan.tasks) < 4:
        raise ConfigError("calibration needs at least 4 items of each task, half of them to check on; raise --limit")
    seen, unseen = (_part(plan, first) for first in (0, 1))
    guesses = (
        []
        if budget.kind == "lossless"
        else [guess for word in SHAPES for guess in _guess(engine, seen, base, word, note)]
    )
    words = [
        *_finalists(guesses, budget, _sampling(engine, seen, base, note)),
        *(LOSSLESS if budget.kind == "lossless" else LOSSLESS[1:2]),
    ]
    contenders = parse_contenders([BASELINE, *words], base)
    record = _run(engine, seen, contenders, folder / "chosen_on", note)
    chosen, verdict = _choose(contenders, record["rows"], budget)
    checked = _run(engine, unseen, list(dict.fromkeys([contenders[0], chosen])), folder / "checked_on", note)["rows"]
    return Choice(
        contender=chosen,
        verdict=verdict,
        rows=_rows_of(chosen.label, record["rows"]),
        unseen=_rows_of(chosen.label, checked),
        unseen_verdict=_verdict(chosen, checked, budget),
        guesses=guesses,
    )


def _part(plan: EvaluationPlan, first: int) -> EvaluationPlan:
    groups = [replace(group, items=group.items[first::2]) for group in plan.tasks]
    return replace(plan, tasks=groups)


def _guess(engine: Engine, plan: EvaluationPlan, base: GenerationOptions, word: str, note: Note) -> list[Guess]:
    """Decode a few items once with a trace, and judge it at every threshold."""
    (contender,) = parse_contenders([word], base)
    seconds, calls, found = 0.0, 0, []
    with tempfile.TemporaryDirectory(prefix="mtad-") as name:
        judgements = []
        for group in plan.tasks:
            trace = Path(name) / f"{group.task.name}.arrow"
            results = _decode(engine, group, contender.options, trace)
            seconds += sum(result.stats.decode_s for result in results)
            calls += sum(result.stats.target_calls for result in results)
            judgements.append(judge_again(trace, THRESHOLDS))
    for place, threshold in enumerate(THRESHOLDS):
        per_task = [judged[place] for judged in judgements]
        found.append(
            Guess(
                word=f"{word},threshold={threshold:g}",
                tokens_per_s=sum(item.tokens_per_call for item in per_task) / len(per_task) * calls / seconds,
                perplexity=max(item.perplexity for item in per_task),
            )
        )
    note(f"judged {word}")
    return found


def _sampling(engine: Engine, plan: EvaluationPlan, base: GenerationOptions, note: Note) -> float:
    """The largest perplexity of single-token sampling on the traced items of any task."""
    (contender,) = parse_contenders([BASELINE], base)
    perplexities: list[float] = []
    for group in plan.tasks:
        results = _decode(engine, group, contender.options, None)
        perplexities.append(max(result.stats.perplexity for result in results))
    note("sampled")
    return max(perplexities)


def _decode(engine: Engine, group: TaskItems, options: GenerationOptions, trace: Path | None) -> list[Any]:
    items = group.items[:_NUM_TRACED]
    changed = replace(options, max_new_tokens=items[0].max_new_tokens, stop=(*options.stop, *items[0].stop))
    prompts = [item.turns[0] for item in items]
    return engine.generate(prompts, changed, style=PromptFormat(is_chat=items[0].is_chat), batch_size=1, trace=trace)


def _finalists(guesses: Sequence[Guess], budget: Budget, limit: float) -> list[str]:
    """The fastest by their traces, each of another shape where there are several; on a budget, only likely ones."""
    kept = [guess for guess in guesses if budget.kind != "perplexity" or guess.perplexity <= _ALLOWANCE * limit]
    ranked = sorted(kept or guesses, key=lambda guess: -guess.tokens_per_s)
    words = [guess.word for guess in ranked[:_NUM_FINALISTS]]
    strict = sorted(guesses, key=lambda guess: guess.perplexity)
    return list(dict.fromkeys([*words, *(guess.word for guess in strict[:1])])) if budget.kind != "speed" else words


def _run(
    engine: Engine, plan: EvaluationPlan, contenders: Sequence[Contender], folder: Path, note: Note
) -> dict[str, Any]:
    entrants = [Entrant(label=item.label, contender=item) for item in contenders]
    return run_evaluation(lambda draft: engine, replace(plan, entrants=entrants), folder, note)


def _choose(contenders: Sequence[Contender], rows: list[dict[str, Any]], budget: Budget) -> tuple[Contender, Verdict]:
    """The fastest whose whole interval keeps to the budget, else the fastest whose mean does."""
    judged = [(item, _verdict(item, rows, budget)) for item in contenders]
    confirmed = [pair for pair in judged if pair[1].is_confirmed] or [pair for pair in judged if pair[1].holds]
    if not confirmed:
        raise ConfigError(f"no candidate keeps to the budget {budget.text!r}; allow more, or name other tasks")
    return max(confirmed, key=lambda pair: _speed(pair[0].label, rows))


def _verdict(contender: Contender, rows: list[dict[str, Any]], budget: Budget) -> Verdict:
    own, baseline = _rows_of(contender.label, rows), _rows_of(BASELINE, rows)
    return judge(budget, own, baseline, is_lossless=bool(contender.is_lossless))


def _speed(label: str, rows: list[dict[str, Any]]) -> float:
    found: list[float] = [row["decoding"]["speed_ratio"]["value"] for row in _rows_of(label, rows)]
    return sum(found) / len(found)


def _rows_of(label: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["contender"] == label]
