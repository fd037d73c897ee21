"""How many requests a session decodes at a time, and how much text."""

from dataclasses import dataclass

from mtad.config.fields import check_settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The size of a session of continuous batching."""

    max_rows: int = setting(int, 16, "requests decoded at a time; others wait", minimum=1, maximum=1024)
    max_tokens: int = setting(
        int, 4096, "tokens of prompt and answer that a request can have, if the models read that many", minimum=2
    )
    prefill_chunk: int = setting(
        int, 256, "prompt tokens read between two iterations, which bounds the gap in every stream", minimum=1
    )
    max_waiting: int | None = setting(int, None, "requests that may wait before others are refused", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)
