"""Where an iteration's time goes, by torch's profiler."""

from dataclasses import replace
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from mtad.api import Engine
from mtad.api.contenders import Contender
from mtad.bench.speed import EngineRunner
from mtad.bench.workloads import SpeedWorkload, build_prompts
from mtad.decoding.stages import STAGE_PREFIX

PROFILED_TOKENS = 32
REST = "rest"
HOST = "host"
KINDS = {
    "attention": ("scaled_dot_product", "flash_attention", "tree_attention"),
    "matmuls": ("linear", "mm", "matmul", "einsum"),
    "copies": ("copy", "index", "gather", "scatter", "cat", "stack", "clone", "contiguous", "_to", "fill", "zero"),
    "sampling": ("topk", "sort", "softmax", "cumsum", "multinomial", "exponential", "argmax", "logsumexp"),
}
"""Parts of an operation's name that put it into a kind; the first kind that matches."""
OTHER = "other operations"
COLUMNS = (*KINDS, OTHER, HOST)


def profile_contender(engine: Engine, contender: Contender, workload: SpeedWorkload) -> dict[str, Any]:
    """One batch of at most `PROFILED_TOKENS` tokens a row under the profiler, after one that is not.

    The profiler itself slows small operations down, so shares say more than sums.

    Args:
        engine: The models.
        contender: One of ours.
        workload: What to decode.

    Returns:
        `num_iterations` and `stages`: milliseconds an iteration by stage (draft, score, verify, keep, and the rest with
        prefill) and by kind, `wall_ms` their sum; `device_ms` by stage where there is a device.
    """
    short = replace(workload, new_tokens=min(workload.new_tokens, PROFILED_TOKENS))
    prompts = build_prompts(engine.tokenizer, short, 0)
    runner = EngineRunner(engine, contender.options)
    runner.run(prompts, short, seed=0)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as found:
        sample = runner.run(prompts, short, seed=0)
    iterations = max(sample.num_iterations or 0, 1)
    events = [event for event in found.events() or [] if "CPU" in str(event.device_type)]
    seconds = sample.prefill_s + sample.decode_s
    return {"num_iterations": iterations, "stages": _tabulate(events, 1e6 * seconds, iterations)}


def _tabulate(events: list[FunctionEvent], total_us: float, iterations: int) -> dict[str, dict[str, float]]:
    """Milliseconds an iteration by stage and kind, the stages in the order in which they first came."""
    walls: dict[str, float] = {}
    cells: dict[str, dict[str, float]] = {}
    for event in events:
        if event.name.startswith(STAGE_PREFIX):
            name = event.name.removeprefix(STAGE_PREFIX)
            walls[name] = walls.get(name, 0) + event.cpu_time_total
            continue
        parent = event.cpu_parent
        if parent is not None and not parent.name.startswith(STAGE_PREFIX):
            continue
        stage = REST if parent is None else parent.name.removeprefix(STAGE_PREFIX)
        row = cells.setdefault(stage, {})
        kind = kind_of(event.name)
        row[kind] = row.get(kind, 0) + event.cpu_time_total
        if event.device_time_total:
            row["device"] = row.get("device", 0) + event.device_time_total
    walls[REST] = max(total_us - sum(walls.values()), 0)
    scale = 1e-3 / iterations
    return {stage: _scaled(wall, cells.get(stage, {}), scale) for stage, wall in walls.items()}


def _scaled(wall: float, row: dict[str, float], scale: float) -> dict[str, float]:
    kinds = {kind: scale * row.get(kind, 0) for kind in (*KINDS, OTHER)}
    host = max(scale * wall - sum(kinds.values()), 0)
    device = {"device_ms": scale * row["device"]} if "device" in row else {}
    return (
        {"wall_ms": scale * wall}
        | {f"{kind}_ms": value for kind, value in kinds.items()}
        | {f"{HOST}_ms": host}
        | device
    )


def kind_of(name: str) -> str:
    """The kind of an operation such as `aten::addmm`."""
    plain = name.rsplit("::", maxsplit=1)[-1].lower()
    return next((kind for kind, parts in KINDS.items() if any(part in plain for part in parts)), OTHER)
