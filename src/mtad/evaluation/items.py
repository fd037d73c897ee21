"""The nouns of evaluation: an item to be answered, and the score of its answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a task.

    Attributes:
        item_id: Its name, unique within the task.
        group: What the breakdown is by: a database, a category; empty where there is none.
        turns: What the user says, turn by turn; most tasks have one.
        is_chat: Whether the turns go into the chat template; None where there is one.
        max_new_tokens: Longest answer to a turn.
        stop: Texts that end an answer.
        reference: What the scorer needs, ready for JSON.
    """

    item_id: str
    turns: tuple[str, ...]
    max_new_tokens: int
    group: str = ""
    is_chat: bool | None = None
    stop: tuple[str, ...] = ()
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """What an answer is worth.

    Attributes:
        value: 0 to 1, or None where nothing in the task says what is right.
        details: Further figures and texts about the answer, ready for JSON.
    """

    value: float | None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set with its prompts and its scorer.

    Attributes:
        name: The word on the command line.
        metric: What `Score.value` is, in words; empty where there is no score.
        load: Reads all items from the data folder; the number is that of worked examples in the prompt.
        score: Judges the answers to an item's turns.
        shots: Worked examples in the prompt unless others are asked for.
        max_shots: Most of them that can be had.
        runs_code: Whether scoring runs what the model wrote.
    """

    name: str
    metric: str
    load: Callable[[Path, int], list[Item]]
    score: Callable[[Item, Sequence[str]], Score]
    shots: int = 0
    max_shots: int = 0
    runs_code: bool = False


def spread(entries: Sequence[_Entry], limit: int | None) -> list[_Entry]:
    """At most so many entries, evenly spaced over all."""
    if limit is None or limit >= len(entries):
        return list(entries)
    return [entries[place * len(entries) // limit] for place in range(limit)]


def no_score(item: Item, answers: Sequence[str]) -> Score:
    """For tasks that measure likelihood and speed alone."""
    return Score(None)
