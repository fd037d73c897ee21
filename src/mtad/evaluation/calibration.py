"""Searches the fastest settings that keep to a budget."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtad.api import Engine, PromptFormat
from mtad.api.contenders import parse_contenders
from mtad.api.rejudging import judge_again
from mtad.config import GenerationOptions
from mtad.energy import EnergyMeter, join_reasons
from mtad.errors import ConfigError
from mtad.evaluation.budgets import Budget, Verdict, judge
from mtad.evaluation.joules import measure_joules
from mtad.evaluation.plan import Entrant, EvaluationPlan, TaskItems
from mtad.evaluation.running import LoadEngine, run_evaluation
from mtad.results.comparison import BASELINE

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
SHAPES = (
    "mtad:gamma=3,beam_width=3",
    "mmtad:gamma=2,beam_width=3",
    "mmtad:gamma=3,beam_width=3",
    "mmtad:gamma=4,beam_width=4",
    "joint_expected@beam_tree:gamma=3,beam_width=3",
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
        draft: Its draft; None means the usual one.
        tokens_per_s: Predicted: the judged tokens per call by the recorded seconds per call.
        perplexity: Judged.
    """

    word: str
    draft: str | None
    tokens_per_s: float
    perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a calibration has found.

    Attributes:
        entrant: The fastest that keeps to the budget.
        verdict: On the items that it was chosen by.
        rows: Its rows there.
        unseen: Its rows on the items that nothing was chosen by.
        unseen_verdict: The same verdict there.
        guesses: What the traces said.
        models: The models of the runs, as records have them.
    """

    entrant: Entrant
    verdict: Verdict
    rows: list[dict[str, Any]]
    unseen: list[dict[str, Any]]
    unseen_verdict: Verdict
    guesses: list[Guess]
    models: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched.

    Attributes:
        load: Gives the engine of a draft.
        drafts: The drafts to choose from; None means the usual one.
        plan: Tasks with their items, seeds and batch size; its entrants do not matter.
        base: Settings that all candidates share.
        budget: What must hold.
        folder: Gets the runs, in `chosen_on` and `checked_on`.
        note: Called as things get done.
        meter: Counts joules where the budget is of energy.
    """

    load: LoadEngine
    drafts: Sequence[str | None]
    plan: EvaluationPlan
    base: GenerationOptions
    budget: Budget
    folder: Path
    note: Note
    meter: EnergyMeter | None = None


def calibrate(search: Search) -> Choice:
    """Choose settings on every other item and check them on the rest.

    Traces of a few items are judged at all thresholds first; only the most promising settings are run on all items.

    Raises:
        ConfigError: Too few items, a budget that the tasks say nothing about, or one of energy without a counter.
        EnergyError: The counter failed in a window.
    """
    if search.budget.needs_meter and (search.meter is None or not search.meter.scopes):
        raise ConfigError(f"budget {search.budget.text!r} needs joules; {_why_no_joules(search.meter)}")
    if min(len(group.items) for group in search.plan.tasks) < 4:
        raise ConfigError("calibration needs at least 4 items of each task, half of them to check on; raise --limit")
    seen, unseen = (_part(search.plan, first) for first in (0, 1))
    guesses = _guesses(search, seen)
    entrants = _entrants(search, guesses)
    rows, models = _run(search, seen, entrants, "chosen_on")
    chosen, verdict = _choose(entrants, rows, search.budget)
    checked, _ = _run(search, unseen, list(dict.fromkeys([entrants[0], chosen])), "checked_on")
    return Choice(
        entrant=chosen,
        verdict=verdict,
        rows=_rows_of(chosen.label, rows),
        unseen=_rows_of(chosen.label, checked),
        unseen_verdict=_verdict(chosen, checked, search.budget),
        guesses=guesses,
        models=models | {"draft": chosen.draft or models["draft"]},
    )


def _why_no_joules(meter: EnergyMeter | None) -> str:
    reason = "no meter was opened" if meter is None else join_reasons(meter.not_measured)
    return f"not measured: {reason}; choose another --meter, or a budget on something else"


def _part(plan: EvaluationPlan, first: int) -> EvaluationPlan:
    groups = [replace(group, items=group.items[first::2]) for group in plan.tasks]
    return replace(plan, tasks=groups)


def _guesses(search: Search, plan: EvaluationPlan) -> list[Guess]:
    """What a few traced items say of every shape, draft and threshold; without those that a budget rules out."""
    if search.budget.kind == "lossless":
        return []
    found, limit = [], float("inf")
    for draft in search.drafts:
        engine = search.load(draft)
        if search.budget.kind == "perplexity" and limit == float("inf"):
            limit = _ALLOWANCE * _sampling(engine, plan, search.base, search.note)
        for word in SHAPES:
            found += _guess(engine, plan, search.base, (word, draft), search.note)
    return [guess for guess in found if guess.perplexity <= limit] or found


def _guess(
    engine: Engine, plan: EvaluationPlan, base: GenerationOptions, shape: tuple[str, str | None], note: Note
) -> list[Guess]:
    """Decode a few items once with a trace, and judge it at every threshold; `shape` is a contender and its draft."""
    word, draft = shape
    (contender,) = parse_contenders([word], base)
    seconds, calls, found = 0.0, 0, []
    with tempfile.TemporaryDirectory(prefix="mtad-") as name:
        judgements = []
        for group in plan.tasks:
            trace = Path(name) / f"{group.task.name}.arrow"
            results = _decode(engine, plan, group, contender.options, trace=trace)
            seconds += sum(result.stats.decode_s for result in results)
            calls += sum(result.stats.target_calls for result in results)
            judgements.append(judge_again(trace, THRESHOLDS))
    for place, threshold in enumerate(THRESHOLDS):
        per_task = [judged[place] for judged in judgements]
        found.append(
            Guess(
                word=f"{word},threshold={threshold:g}",
                draft=draft,
                tokens_per_s=sum(item.tokens_per_call for item in per_task) / len(per_task) * calls / seconds,
                perplexity=max(item.perplexity for item in per_task),
            )
        )
    note(f"judged {word}" + ("" if draft is None else f" with {Path(draft).name}"))
    return found


def _sampling(engine: Engine, plan: EvaluationPlan, base: GenerationOptions, note: Note) -> float:
    """The largest perplexity of single-token sampling on the traced items of any task."""
    (contender,) = parse_contenders([BASELINE], base)
    perplexities: list[float] = []
    for group in plan.tasks:
        results = _decode(engine, plan, group, contender.options)
        perplexities.append(max(result.stats.perplexity for result in results))
    note("sampled")
    return max(perplexities)


def _decode(
    engine: Engine,
    plan: EvaluationPlan,
    group: TaskItems,
    options: GenerationOptions,
    *,
    part: slice = slice(_NUM_TRACED),
    batch_size: int = 1,
    trace: Path | None = None,
) -> list[Any]:
    items = group.items[part]
    length = plan.max_new_tokens or items[0].max_new_tokens
    changed = replace(options, max_new_tokens=length, stop=(*options.stop, *items[0].stop))
    prompts, style = [item.turns[0] for item in items], PromptFormat(is_chat=items[0].is_chat)
    return engine.generate(prompts, changed, style=style, batch_size=batch_size, trace=trace)


def _entrants(search: Search, guesses: Sequence[Guess]) -> list[Entrant]:
    """Sampling, the most promising settings and a lossless rule; under a lossless budget every such rule."""
    lossless = LOSSLESS if search.budget.kind == "lossless" else LOSSLESS[1:2]
    names = [
        (BASELINE, search.drafts[0]),
        *_finalists(guesses, search.budget),
        *((word, draft) for draft in search.drafts for word in lossless),
    ]
    contenders = {item.label: item for item in parse_contenders([word for word, _ in names], search.base)}
    several = len(search.drafts) > 1
    return [
        Entrant(
            label=f"{word} ({Path(draft).name})" if several and draft and word != BASELINE else word,
            contender=contenders[word],
            draft=draft,
        )
        for word, draft in names
    ]


def _finalists(guesses: Sequence[Guess], budget: Budget) -> list[tuple[str, str | None]]:
    """The fastest by their traces with their drafts; where there is a limit, the likeliest of all as well."""
    ranked = sorted(guesses, key=lambda guess: -guess.tokens_per_s)[:_NUM_FINALISTS]
    likeliest = sorted(guesses, key=lambda guess: guess.perplexity)[: 0 if budget.kind == "speed" else 1]
    return list(dict.fromkeys((guess.word, guess.draft) for guess in (*ranked, *likeliest)))


def _run(
    search: Search, plan: EvaluationPlan, entrants: Sequence[Entrant], name: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and models of a run; where the budget is of energy, the rows with `joules`."""
    record = run_evaluation(search.load, replace(plan, entrants=entrants), search.folder / name, search.note)
    rows: list[dict[str, Any]] = record["rows"]
    if search.budget.needs_meter:
        assert search.meter is not None

        def opened(entrant: Entrant) -> Callable[[TaskItems, slice], int]:
            engine, options = search.load(entrant.draft), entrant.contender.options
            return lambda group, part: sum(
                answer.stats.num_tokens
                for answer in _decode(engine, plan, group, options, part=part, batch_size=plan.options.batch_size)
            )

        found = measure_joules(entrants, plan.tasks, opened, search.meter, search.note)
        rows = [row | {"joules": found[row["task"], row["contender"]]} for row in rows]
    return rows, record["models"]


def _choose(entrants: Sequence[Entrant], rows: list[dict[str, Any]], budget: Budget) -> tuple[Entrant, Verdict]:
    """The fastest whose whole interval keeps to the budget, else the fastest whose mean does."""
    judged = [(item, _verdict(item, rows, budget)) for item in entrants]
    confirmed = [pair for pair in judged if pair[1].is_confirmed] or [pair for pair in judged if pair[1].holds]
    if not confirmed:
        raise ConfigError(f"no candidate keeps to the budget {budget.text!r}; allow more, or name other tasks")
    return max(confirmed, key=lambda pair: _speed(pair[0].label, rows))


def _verdict(entrant: Entrant, rows: list[dict[str, Any]], budget: Budget) -> Verdict:
    own, baseline = _rows_of(entrant.label, rows), _rows_of(BASELINE, rows)
    return judge(budget, own, baseline, is_lossless=bool(entrant.contender.is_lossless))


def _speed(label: str, rows: list[dict[str, Any]]) -> float:
    found: list[float] = [row["decoding"]["speed_ratio"]["value"] for row in _rows_of(label, rows)]
    return sum(found) / len(found)


def _rows_of(label: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["contender"] == label]
