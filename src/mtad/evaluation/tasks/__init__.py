"""The tasks by name."""

from mtad.errors import ConfigError
from mtad.evaluation.items import Task
from mtad.evaluation.tasks.chat import MT_BENCH, SPEC_BENCH
from mtad.evaluation.tasks.code import HUMANEVAL, MBPP
from mtad.evaluation.tasks.gsm8k import GSM8K
from mtad.evaluation.tasks.spider import SPIDER
from mtad.evaluation.tasks.summaries import CNN_DM, XSUM
from mtad.evaluation.tasks.wikitext import WIKITEXT

TASKS: dict[str, Task] = {
    task.name: task for task in (SPIDER, HUMANEVAL, MBPP, GSM8K, XSUM, CNN_DM, MT_BENCH, SPEC_BENCH, WIKITEXT)
}


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; known tasks are {', '.join(TASKS)}")
    return TASKS[name]
