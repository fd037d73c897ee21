"""The table of an evaluation: one row for a contender on a task, made from its answers."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from mtad.results.comparison import BASELINE, MethodSummary, summarize_row
from mtad.results.intervals import Estimate
from mtad.results.significance import mean, paired_test, pass_at_k

SCHEMA = 1
Entries = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How much the answers to one prompt differ from seed to seed.

    Attributes:
        distinct_pairs: Different pairs of neighbouring words by all pairs, over the seeds of a prompt.
        similarity: Mean share of word pairs that two answers to one prompt have in common (Jaccard).
    """

    distinct_pairs: float
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """One row.

    Attributes:
        task: Name of the task.
        contender: Label of the contender.
        num_items: Items answered, seeds not counted.
        num_seeds: Seeds behind the row.
        score: Mean over items of the mean over seeds, with its interval over items; None for tasks without a score.
        score_change: Difference to the baseline, paired over items.
        p_value: Of that difference: McNemar's exact test, or sign flips where scores are not 0 or 1.
        score_without_empty: Leaving out items whose gold answer is empty; None where no item is marked so.
        groups: Mean score (or None) and number of items by database or category.
        pass_at: pass@k by k, for tasks that run code, where there are several seeds.
        diversity: Over seeds; None for a single one.
        decoding: Likelihood, calls, lengths and speed.
    """

    task: str
    contender: str
    num_items: int
    num_seeds: int
    score: Estimate | None
    score_change: Estimate | None
    p_value: float | None
    score_without_empty: Estimate | None
    groups: dict[str, tuple[float | None, int]]
    pass_at: dict[str, float]
    diversity: Diversity | None
    decoding: MethodSummary


def summarize_evaluation(entries: Entries, *, baseline: str = BASELINE) -> list[TaskSummary]:
    """The rows of all answers: tasks in the order in which they first appear, and so the contenders of every task.

    Args:
        entries: The answers, as an `ItemLog` holds them.
        baseline: Label of the contender that differences are against.
    """
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        cells.setdefault((entry["task"], entry["contender"]), []).append(entry)
    tasks, labels = (list(dict.fromkeys(place[side] for place in cells)) for side in (0, 1))
    places = [(task, label) for task in tasks for label in labels if (task, label) in cells]
    return [_row(task, label, cells[task, label], cells.get((task, baseline))) for task, label in places]


def summaries_to_json(rows: Sequence[TaskSummary]) -> list[dict[str, Any]]:
    """Plain dictionaries of the rows."""
    return [asdict(row) for row in rows]


def _row(task: str, label: str, entries: Entries, baseline: Entries | None) -> TaskSummary:
    is_baseline = baseline is not None and baseline[0]["contender"] == label
    scores = item_scores(entries)
    others = {} if baseline is None or is_baseline else item_scores(baseline)
    shared = [item for item in scores if item in others]
    pair = [np.array([side[item] for item in shared]) for side in (scores, others)]
    filled = [entry for entry in entries if not entry["details"].get("is_gold_empty", False)]
    other_row = None if baseline is None else _decoding_row(baseline)
    own_row = other_row if is_baseline and other_row is not None else _decoding_row(entries)
    return TaskSummary(
        task=task,
        contender=label,
        num_items=len({entry["item"] for entry in entries}),
        num_seeds=len({entry["seed"] for entry in entries}),
        score=_mean(list(scores.values())),
        score_change=_mean(list(pair[0] - pair[1])),
        p_value=paired_test(pair[0], pair[1]) if shared else None,
        score_without_empty=_mean(list(item_scores(filled).values())) if len(filled) < len(entries) else None,
        groups=_groups(entries, scores),
        pass_at=_pass_at(entries),
        diversity=_diversity(entries),
        decoding=summarize_row(label, own_row, other_row),
    )


def item_scores(entries: Entries) -> dict[str, float]:
    """Mean score over seeds of every item that has one."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        if entry["value"] is not None:
            found.setdefault(entry["item"], []).append(entry["value"])
    return {item: sum(values) / len(values) for item, values in found.items()}


def _mean(values: Sequence[float]) -> Estimate | None:
    return mean(np.array(values, dtype=np.float64)) if len(values) else None


def _groups(entries: Entries, scores: dict[str, float]) -> dict[str, tuple[float | None, int]]:
    members: dict[str, dict[str, None]] = {}
    for entry in entries:
        if entry["group"]:
            members.setdefault(entry["group"], {})[entry["item"]] = None
    groups: dict[str, tuple[float | None, int]] = {}
    for group, items in members.items():
        values = [scores[item] for item in items if item in scores]
        groups[group] = (sum(values) / len(values) if values else None, len(items))
    return groups


def _pass_at(entries: Entries) -> dict[str, float]:
    if not any(entry["metric"] == "pass@1" for entry in entries):
        return {}
    passed: dict[str, list[bool]] = {}
    for entry in entries:
        passed.setdefault(entry["item"], []).append(entry["value"] == 1)
    fewest = min(len(values) for values in passed.values())
    return {
        str(k): sum(pass_at_k(len(values), sum(values), k) for values in passed.values()) / len(passed)
        for k in (1, 2, 5, 10)
        if fewest > 1 and k <= fewest
    }


def _decoding_row(entries: Entries) -> dict[str, Any]:
    """Answers and batches in the form of a comparison's record."""
    places = {item: place for place, item in enumerate(dict.fromkeys(entry["item"] for entry in entries))}
    batches: dict[tuple[int, int], tuple[int, float]] = {}
    for entry in entries:
        key = (entry["seed"], entry["start"])
        tokens, _ = batches.get(key, (0, 0.0))
        batches[key] = (tokens + entry["num_tokens"], entry["batch_decode_s"])
    return {
        "answers": [entry | {"prompt": places[entry["item"]]} for entry in entries],
        "batches": list(batches),
        "batch_tokens": [tokens for tokens, _ in batches.values()],
        "decode_s": [seconds for _, seconds in batches.values()],
    }


def _diversity(entries: Entries) -> Diversity | None:
    answers: dict[str, list[list[str]]] = {}
    for entry in entries:
        answers.setdefault(entry["item"], []).append(" ".join(entry["outputs"]).split())
    distinct, similarities = [], []
    for texts in answers.values():
        pairs = [list(pairwise(words)) for words in texts]
        total = sum(map(len, pairs))
        if len(texts) > 1 and total:
            distinct.append(len({pair for found in pairs for pair in found}) / total)
            similarities += [_jaccard(set(one), set(two)) for one, two in combinations(pairs, 2)]
    if not distinct:
        return None
    return Diversity(distinct_pairs=_average(distinct), similarity=_average(similarities))


def _jaccard(one: set[tuple[str, str]], two: set[tuple[str, str]]) -> float:
    union = one | two
    return len(one & two) / len(union) if union else 1.0


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
