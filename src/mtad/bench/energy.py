"""Measures what contenders take in joules under patterns of requests, into a record that can be gone on with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from mtad.api import Engine
from mtad.api.contenders import Contender, in_turns
from mtad.api.phases import open_phases
from mtad.api.session import BatchSession
from mtad.bench.arrivals import PATTERNS, Schedule, Served, plan_arrivals, serve, warm_up
from mtad.bench.workloads import build_prompt
from mtad.decoding import resolve_pair
from mtad.energy import EnergyMeter, EnergyReading, join_reasons, name_scopes
from mtad.errors import ConfigError
from mtad.results.energy import DRAFT, SCHEMA, SCORE, choose_baseline
from mtad.results.provenance import describe_run

UNMEASURED_PHASE_S = 0.5
"""How long a phase is repeated where only its time can be had."""
_NUMBER_STEP = 13
"""Numbers of prompts so far apart begin differently, so that no prompt finds another's keys in the cache."""
_WARM_UP_NUMBER = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyWorkload:
    """Requests of one length that come in one pattern.

    Attributes:
        pattern: Name of a pattern of `PATTERNS`.
        batch_size: Requests decoded at a time; others wait.
        prompt_tokens: Tokens that a prompt has at least; 0 leaves the questions as they are.
        new_tokens: Tokens of every answer; the end-of-text token does not end it.
    """

    pattern: str
    batch_size: int
    prompt_tokens: int
    new_tokens: int

    @property
    def label(self) -> str:
        """The workload in a few words."""
        prompt = f"prompts of {self.prompt_tokens} tokens" if self.prompt_tokens else "short questions"
        return f"{self.pattern}, batch {self.batch_size}, {prompt}, {self.new_tokens} new tokens"

    @property
    def size(self) -> str:
        """What the time of a full batch depends on."""
        return f"{self.batch_size}/{self.prompt_tokens}/{self.new_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPlan:
    """What is measured.

    Attributes:
        contenders: Take turns; the first one's speed sets how fast requests come.
        workloads: What they decode.
        repeats: Windows of each contender on each workload.
        window_s: Seconds that a window takes at least.
    """

    contenders: Sequence[Contender]
    workloads: Sequence[EnergyWorkload]
    repeats: int
    window_s: float

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Batch sizes and prompt lengths, each once: what phases depend on."""
        return list(dict.fromkeys((item.batch_size, item.prompt_tokens) for item in self.workloads))

    @property
    def num_windows(self) -> int:
        """Windows and pairs of phases in all."""
        return len(self.contenders) * (len(self.workloads) * self.repeats + len(self.shapes))


def synchronizer(engine: Engine) -> Callable[[], None] | None:
    """Waits for the models' device; None where nothing runs beside the host."""
    device = engine.models.target.device
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else None


def split_contenders(contenders: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Those that share a batch with others, and why the rest cannot take part.

    Raises:
        ConfigError: None of them can.
    """
    skipped = {
        item.label: f"{item.options.method} decodes whole batches and cannot take requests as they come"
        for item in contenders
        if resolve_pair(item.options) is None
    }
    if len(skipped) == len(contenders):
        raise ConfigError(f"{'; '.join(skipped.values())}; name another contender with --rules")
    return [item for item in contenders if item.label not in skipped], skipped


def describe_meter(meter: EnergyMeter) -> dict[str, Any]:
    """What records keep of a meter."""
    return {
        "backend": meter.name,
        "scopes": list(meter.scopes),
        "scope": name_scopes(meter.scopes),
        "is_recording": meter.is_recording,
        "minimum_s": meter.minimum_s,
        "resolution_s": meter.resolution_s,
        "not_measured": meter.not_measured,
        "reason": None if meter.scopes else join_reasons(meter.not_measured),
    }


def open_energy_record(engine: Engine, plan: EnergyPlan, meter: EnergyMeter, skipped: dict[str, str]) -> dict[str, Any]:
    """An empty record: provenance, models, meter, and everything that must be alike to go on with it."""
    labels = [item.label for item in plan.contenders]
    return {
        "kind": "energy",
        "schema": SCHEMA,
        "run": describe_run(),
        "models": asdict(engine.models.options),
        "threads": torch.get_num_threads(),
        "meter": describe_meter(meter),
        "setup": {
            "contenders": {item.label: asdict(engine.resolve(item.options)) for item in plan.contenders},
            "baseline": choose_baseline(labels),
            "workloads": [asdict(item) | {"label": item.label} for item in plan.workloads],
            "patterns": {name: asdict(pattern) for name, pattern in PATTERNS.items()},
            "window_s": plan.window_s,
        },
        "skipped": skipped,
        "idle": [],
        "service_s": {},
        "samples": [],
        "phases": [],
    }


def continue_energy_record(found: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The found record, ready to go on.

    Raises:
        ConfigError: It is of another kind, other models, contenders, workloads, meter or number of threads.
    """
    fresh = json.loads(json.dumps(fresh))
    for key in ("kind", "schema", "models", "threads", "setup"):
        if found.get(key) != fresh[key]:
            raise ConfigError(
                f"the record is of another run (its {key} differs); name another file, or the same models, contenders "
                "and workloads"
            )
    before, after = ([record["meter"][key] for key in ("backend", "scopes")] for record in (found, fresh))
    if before != after:
        raise ConfigError(
            f"the record's meter is {before[0]} ({name_scopes(before[1]) or 'nothing'}), here it is {after[0]} "
            f"({name_scopes(after[1]) or 'nothing'}); name another file, or the same meter"
        )
    found["continued"] = [*found.get("continued", []), fresh["run"]]
    return found


def run_energy(
    engine: Engine, plan: EnergyPlan, meter: EnergyMeter, record: dict[str, Any], note: Callable[[str], None]
) -> None:
    """Fill the record; what it holds already is not run again.

    Idle power comes first, then phase by phase, then every workload; contenders take turns, in each repeat another one
    first.

    Args:
        engine: The models, loaded: idle power is that of a machine that holds them.
        plan: What to measure.
        meter: Measures it.
        record: Changed in place.
        note: Called with a few words after each window.
    """
    if meter.scopes:
        record["idle"].append(_document(meter.measure_idle(max(plan.window_s, meter.minimum_s))))
    for batch_size, prompt_tokens in plan.shapes:
        for contender in plan.contenders:
            _measure_phases(engine, contender, (batch_size, prompt_tokens), meter, record)
            note(f"{contender.label}, phases")
    done = {(item["workload"], item["contender"], item["repeat"]) for item in record["samples"]}
    for number, workload in enumerate(plan.workloads):
        for repeat in range(plan.repeats):
            for contender in in_turns(plan.contenders, repeat):
                place = (number, contender.label, repeat)
                if place not in done:
                    schedule = _schedule(engine, plan, workload, record)
                    sample = _measure_window(engine, contender, workload, schedule, meter, repeat)
                    record["samples"].append({"workload": number, "contender": contender.label} | sample)
                note(f"{contender.label}, {workload.pattern}")


def _measure_phases(
    engine: Engine, contender: Contender, shape: tuple[int, int], meter: EnergyMeter, record: dict[str, Any]
) -> None:
    """Drafting alone and scoring alone, each in a window of its own."""
    batch_size, prompt_tokens = shape
    place = {"contender": contender.label, "batch_size": batch_size, "prompt_tokens": prompt_tokens}
    if any(all(item[key] == value for key, value in place.items()) for item in record["phases"]):
        return
    prompts = [build_prompt(engine.tokenizer, prompt_tokens, _NUMBER_STEP * row) for row in range(batch_size)]
    least_s = meter.minimum_s if meter.scopes else UNMEASURED_PHASE_S
    found = []
    with open_phases(engine, prompts, replace(contender.options, max_new_tokens=2, ignore_eos=True)) as phases:
        work = {DRAFT: phases.draft, SCORE: phases.score} if phases.num_nodes else {SCORE: phases.score}
        for phase, call in work.items():
            reading, count = meter.measure(call, least_s)
            found.append(place | {"phase": phase, "num_calls": count, "reading": _document(reading)})
    record["phases"] += found


def _schedule(engine: Engine, plan: EnergyPlan, workload: EnergyWorkload, record: dict[str, Any]) -> Schedule:
    """When requests come; how fast the first contender decodes a full batch is measured once for every size.

    It decodes one more batch before, of every contender: what is compiled or captured for a shape takes a second then.
    """
    if workload.size not in record["service_s"]:
        once = Schedule((0.0,) * workload.batch_size, 0.0)
        for contender in [*plan.contenders[1:], *plan.contenders[:1]]:
            _serve(engine, contender, workload, once, None, repeat=0)
        served = _serve(engine, plan.contenders[0], workload, once, None, repeat=0)[0]
        record["service_s"][workload.size] = served.seconds
    service_s = record["service_s"][workload.size]
    return plan_arrivals(PATTERNS[workload.pattern], workload.batch_size, service_s, plan.window_s)


def _measure_window(
    engine: Engine,
    contender: Contender,
    workload: EnergyWorkload,
    schedule: Schedule,
    meter: EnergyMeter,
    repeat: int,
) -> dict[str, Any]:
    served, reading = _serve(engine, contender, workload, schedule, meter, repeat)
    assert reading is not None
    stats = [result.stats for result in served.results]
    return {
        "repeat": repeat,
        "seconds": served.seconds,
        "busy_s": served.busy_s,
        "num_answers": len(stats),
        "num_tokens": sum(item.num_tokens for item in stats),
        "target_calls": sum(item.target_calls for item in stats),
        "num_iterations": served.num_iterations,
        "log_prob_sum": sum(sum(result.log_probs) for result in served.results),
        "latencies_s": list(served.latencies_s),
        "reading": _document(reading),
    }


def _serve(
    engine: Engine,
    contender: Contender,
    workload: EnergyWorkload,
    schedule: Schedule,
    meter: EnergyMeter | None,
    repeat: int,
) -> tuple[Served, EnergyReading | None]:
    """Run a schedule in a session of its own, behind a warm-up; in a window where there is a meter."""
    options = replace(contender.options, seed=repeat, max_new_tokens=workload.new_tokens, ignore_eos=True)
    count, first = len(schedule.times), repeat * len(schedule.times)
    prompts = [_prompt(engine, workload, first + index) for index in range(count)]
    with _open_session(engine, workload, prompts) as session:
        rows = range(min(workload.batch_size, count))
        others = [build_prompt(engine.tokenizer, 0, _NUMBER_STEP * (_WARM_UP_NUMBER + row)) for row in rows]
        warm_up(session, others, options)
        if meter is None:
            return serve(session, prompts, options, schedule), None
        with meter.window() as window:
            served = serve(session, prompts, options, schedule)
    return served, window.reading


def _open_session(engine: Engine, workload: EnergyWorkload, prompts: Sequence[list[int]]) -> BatchSession:
    longest = max(len(prompt) for prompt in prompts)
    # A warm-up's question may be longer than these.
    room = 2 * longest + workload.new_tokens
    return engine.session(max_rows=workload.batch_size, max_tokens=room)


def _prompt(engine: Engine, workload: EnergyWorkload, number: int) -> list[int]:
    return build_prompt(engine.tokenizer, workload.prompt_tokens, _NUMBER_STEP * number)


def _document(reading: EnergyReading) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(asdict(reading)))
    return document
