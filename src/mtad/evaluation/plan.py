"""What an evaluation runs: tasks with their items, entrants, seeds and batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtad.api.contenders import Contender, in_turns
from mtad.config import EvaluationOptions
from mtad.errors import ConfigError
from mtad.evaluation.items import Item, Task, spread
from mtad.evaluation.tasks import find_task
from mtad.results.item_log import BatchKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItems:
    """A task and those of its items that are run."""

    task: Task
    items: tuple[Item, ...]
    shots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A contender with the draft that it uses.

    Attributes:
        label: The contender's, with the draft's name where there are several.
        contender: Its settings.
        draft: Folder or hub id; None means the usual one.
    """

    label: str
    contender: Contender
    draft: str | None = None

    def seeds(self, first: int, count: int) -> range:
        """Seeds to run: one for greedy decoding, which draws nothing."""
        return range(first, first + (1 if self.contender.options.temperature == 0 else count))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What is run.

    Attributes:
        tasks: With their items.
        entrants: The lines of the table.
        options: Seeds and batch size.
        first_seed: Seeds are counted up from here.
        system: System message of the chat template.
        max_new_tokens: Longest answer; None leaves it to the task.
    """

    tasks: Sequence[TaskItems]
    entrants: Sequence[Entrant]
    options: EvaluationOptions
    first_seed: int = 0
    system: str | None = None
    max_new_tokens: int | None = None

    def batches(self, draft: str | None) -> Iterator[tuple[TaskItems, int, int, list[Entrant]]]:
        """Task, first item, seed and entrants of every turn with one draft, each turn another entrant first."""
        entrants = [entrant for entrant in self.entrants if entrant.draft == draft]
        turn = 0
        for group in self.tasks:
            for seed in range(self.first_seed, self.first_seed + self.options.num_seeds):
                taking = [one for one in entrants if seed in one.seeds(self.first_seed, self.options.num_seeds)]
                for start in range(0, len(group.items), self.options.batch_size):
                    yield group, start, seed, in_turns(taking, turn)
                    turn += 1

    def drafts(self) -> list[str | None]:
        """The drafts, each once."""
        return list(dict.fromkeys(entrant.draft for entrant in self.entrants))

    def num_batches(self) -> int:
        """Batches in all."""
        return sum(len(taking) for draft in self.drafts() for *_, taking in self.batches(draft))

    def batch_length(self, key: BatchKey) -> int:
        """Answers of a whole batch; -1 for one that is not part of the plan."""
        task, label, seed, start = key
        group = next((group for group in self.tasks if group.task.name == task), None)
        entrant = next((one for one in self.entrants if one.label == label), None)
        if group is None or entrant is None or seed not in entrant.seeds(self.first_seed, self.options.num_seeds):
            return -1
        return len(group.items[start : start + self.options.batch_size])


def load_tasks(names: Sequence[str], data: Path, options: EvaluationOptions) -> list[TaskItems]:
    """The named tasks with their items.

    Raises:
        ConfigError: An unknown task, too many worked examples, or generated code that must not run.
        DataError: Data is missing or broken.
    """
    loaded = []
    for name in dict.fromkeys(names):
        task = find_task(name)
        if task.runs_code and not options.allow_code_execution:
            raise ConfigError(
                f"{name} runs what the model writes; allow that with --allow-code-execution, or leave the task out"
            )
        shots = task.shots if options.shots is None else options.shots
        if shots > task.max_shots:
            raise ConfigError(f"shots of {name} must be at most {task.max_shots}, got {shots}; lower it")
        items = tuple(spread(task.load(data, shots), options.limit))
        loaded.append(TaskItems(task=task, items=items, shots=shots))
    return loaded
