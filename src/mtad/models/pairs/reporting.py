"""Progress of a long first run, always on standard error: standard output belongs to results."""

import sys
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Phase lines and bars, or silence."""

    is_enabled: bool

    def say(self, text: str) -> None:
        """Prints one line."""
        if self.is_enabled:
            print(f"mtad: {text}", file=sys.stderr, flush=True)

    def bar(self, description: str, total: int, unit: str) -> "tqdm[None]":
        """Returns a bar to be used as a context manager; it stays invisible where standard error is no terminal."""
        return tqdm(
            desc=f"mtad: {description}",
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            file=sys.stderr,
            disable=None if self.is_enabled else True,
        )
