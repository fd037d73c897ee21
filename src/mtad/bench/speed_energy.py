"""Joules of a speed record's contenders, measured after the speeds, so that no window lies around a clock."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mtad.api import Engine
from mtad.api.contenders import Contender
from mtad.bench.speed import EngineRunner
from mtad.bench.workloads import SpeedWorkload, build_prompts
from mtad.energy import EnergyMeter


def measure_joules(
    engine: Engine,
    contenders: Sequence[Contender],
    workloads: Sequence[SpeedWorkload],
    repeats: int,
    meter: EnergyMeter,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One window for every workload and contender, over all repeats' batches, as often as makes it long enough.

    Peers are not in it: they score their answers within a run, which would count as theirs.

    Args:
        engine: The models.
        contenders: Ours.
        workloads: What to decode.
        repeats: Batches of each, other prompts in each.
        meter: Has something to count.
        note: Called with a label after each window.

    Returns:
        Per window `workload`, `contender`, `num_tokens`, `num_batches` and `reading`.
    """
    meter.measure_idle()
    rows = []
    for number, workload in enumerate(workloads):
        batches = [build_prompts(engine.tokenizer, workload, repeat) for repeat in range(repeats)]
        for contender in contenders:
            row = _measure(EngineRunner(engine, contender.options), workload, batches, meter)
            rows.append({"workload": number, "contender": contender.label} | row)
            note(contender.label)
    return rows


def _measure(
    runner: EngineRunner, workload: SpeedWorkload, batches: Sequence[list[list[int]]], meter: EnergyMeter
) -> dict[str, Any]:
    counts: list[int] = []

    def decode() -> None:
        for repeat, prompts in enumerate(batches):
            counts.append(runner.run(prompts, workload, repeat).num_tokens)

    reading, _ = meter.measure(decode)
    return {"num_tokens": sum(counts), "num_batches": len(counts), "reading": asdict(reading)}
