"""The settings of an evaluation."""

from dataclasses import dataclass

from mtad.config.fields import check_settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """How much of the tasks is run, and how."""

    limit: int | None = setting(int, None, "evenly spaced items of each task; all when left out", minimum=1)
    num_seeds: int = setting(int, 1, "seeds, counted up from --seed; greedy contenders take one", minimum=1)
    batch_size: int = setting(int, 8, "items decoded at once", minimum=1)
    shots: int | None = setting(
        int, None, "worked examples in the prompt (default: the task's own number)", minimum=0, maximum=8
    )
    allow_code_execution: bool = setting(
        bool, False, "run what the model writes, which humaneval and mbpp need; it runs in a sandboxed child"
    )

    def __post_init__(self) -> None:
        check_settings(self)
