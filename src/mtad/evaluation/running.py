"""Runs contenders on tasks, batch by batch, into a folder that can be gone on with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtad.api import Engine, PromptFormat
from mtad.evaluation.answering import answer_items
from mtad.evaluation.exports import write_exports
from mtad.evaluation.plan import Entrant, EvaluationPlan, TaskItems
from mtad.evaluation.record import open_run
from mtad.results.evaluation import summaries_to_json, summarize_evaluation
from mtad.results.files import write_json
from mtad.results.item_log import ItemLog, write_parquet

LoadEngine = Callable[[str | None], Engine]
"""Loads the models with one of the drafts; None means the usual one."""


def run_evaluation(
    load: LoadEngine,
    plan: EvaluationPlan,
    folder: Path,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Fill the folder and return its record; what it holds already is not run again.

    The folder gets `items.jsonl` (batch by batch), and at the end `items.parquet`, the table in `run.json`, and what
    other tools read.

    Args:
        load: Gives the engine of a draft.
        plan: What to run.
        folder: Made where it is not there.
        note: Called with the task and contender after each batch.

    Raises:
        ConfigError: The folder holds another run.
    """
    record: dict[str, Any] | None = None
    log: ItemLog | None = None
    for draft in plan.drafts():
        engine = load(draft)
        record = open_run(folder / "run.json", engine, plan, draft, record)
        log = log or ItemLog(folder / "items.jsonl", plan.batch_length)
        for group, start, seed, entrants in plan.batches(draft):
            for entrant in entrants:
                if not log.has((group.task.name, entrant.label, seed, start)):
                    log.append(_run_batch(engine, plan, group, entrant, (seed, start)))
                note(f"{group.task.name} {entrant.label}")
    assert record is not None
    assert log is not None
    write_parquet(folder / "items.parquet", log.entries)
    write_exports(folder, log.entries)
    record |= {"rows": summaries_to_json(summarize_evaluation(log.entries)), "is_complete": True}
    write_json(folder / "run.json", record)
    return record


def _run_batch(
    engine: Engine, plan: EvaluationPlan, group: TaskItems, entrant: Entrant, place: tuple[int, int]
) -> list[dict[str, Any]]:
    """Decode and score one batch; `place` is its seed and first item."""
    seed, start = place
    items = group.items[start : start + plan.options.batch_size]
    style = PromptFormat(is_chat=items[0].is_chat, system=None if items[0].is_chat is False else plan.system)
    options = replace(
        entrant.contender.options,
        seed=seed,
        max_new_tokens=plan.max_new_tokens or items[0].max_new_tokens,
        stop=(*entrant.contender.options.stop, *items[0].stop),
    )
    answers = answer_items(engine, items, options, style)
    entries = []
    for item, answer in zip(items, answers, strict=True):
        score = group.task.score(item, answer["outputs"])
        entries.append(
            {
                "task": group.task.name,
                "metric": group.task.metric,
                "item": item.item_id,
                "group": item.group,
                "contender": entrant.label,
                "seed": seed,
                "start": start,
                "turns": list(item.turns),
                "value": score.value,
                "details": score.details,
            }
            | answer
        )
    return entries
