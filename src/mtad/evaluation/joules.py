"""Joules a token of the contenders of an evaluation, in windows of their own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtad.api.contenders import in_turns
from mtad.energy import EnergyMeter, EnergyReading
from mtad.errors import EnergyError
from mtad.evaluation.plan import Entrant, TaskItems
from mtad.results.comparison import BASELINE
from mtad.results.energy import gross_joules
from mtad.results.intervals import median

_NUM_WINDOWS = 5
Decode = Callable[[TaskItems, slice], int]
"""Decodes some of a task's items and gives the number of tokens that came out."""
Opened = Callable[[Entrant], Decode]
"""What decodes by an entrant, its models loaded."""
Joules = dict[tuple[str, str], dict[str, Any]]
"""By task and entrant: `per_token`, and `ratio`, the same by single-token sampling's; both estimates as JSON."""


def measure_joules(
    entrants: Sequence[Entrant],
    groups: Sequence[TaskItems],
    opened: Opened,
    meter: EnergyMeter,
    note: Callable[[str], None],
) -> Joules:
    """Measure every entrant on the same parts of every task, those with one draft in turns, one window a part.

    A part is decoded again until its window is long enough. Prompts are read inside the window, models are not loaded
    in it.

    Args:
        entrants: Single-token sampling among them.
        groups: Tasks with the items to measure on.
        opened: Gives what the windows lie around.
        meter: Has something to count.
        note: Called with a line for each task.

    Returns:
        Medians over windows with their intervals; a ratio is of the same part.

    Raises:
        EnergyError: A window has no joules.
    """
    spent: dict[tuple[str, str], list[float]] = {}
    for draft in dict.fromkeys(entrant.draft for entrant in entrants):
        taking = [entrant for entrant in entrants if entrant.draft == draft]
        decoders = {entrant.label: opened(entrant) for entrant in taking}
        meter.measure_idle()
        for group in groups:
            for turn, part in enumerate(_parts(len(group.items))):
                for entrant in in_turns(taking, turn):
                    joules = _window(decoders[entrant.label], group, part, meter)
                    spent.setdefault((group.task.name, entrant.label), []).append(joules)
            note(f"measured joules on {group.task.name}" + ("" if draft is None else f" with {Path(draft).name}"))
    return {
        (task, label): _estimates(np.array(values), np.array(spent[task, BASELINE]))
        for (task, label), values in spent.items()
    }


def _estimates(own: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, Any]:
    return {"per_token": asdict(median(own)), "ratio": asdict(median(own / base))}


def _parts(count: int) -> list[slice]:
    borders = np.linspace(0, count, min(count, _NUM_WINDOWS) + 1).round().astype(int).tolist()
    return [slice(start, end) for start, end in pairwise(borders)]


def _window(decode: Decode, group: TaskItems, part: slice, meter: EnergyMeter) -> float:
    num_tokens = 0

    def work() -> None:
        nonlocal num_tokens
        num_tokens += decode(group, part)

    reading, _ = meter.measure(work)
    joules = gross_joules(asdict(reading), meter.scopes)
    if joules is None:
        raise EnergyError(_lacking(reading, meter))
    return joules / max(num_tokens, 1)


def _lacking(reading: EnergyReading, meter: EnergyMeter) -> str:
    reasons = [text for scope, text in reading.not_measured.items() if scope in meter.scopes]
    return f"a window has no joules: {reasons[0]}; choose another --meter, or a budget on something else"
