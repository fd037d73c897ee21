"""Measures contenders and peers on the same prompts, interleaved, into a record that can be gone on with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from mtad.api import Engine
from mtad.api.contenders import Contender, in_turns
from mtad.bench.bandwidth import measure_bandwidth
from mtad.bench.llama_cpp import LlamaCppPeer
from mtad.bench.llama_cpp_server import IsolatedServer
from mtad.bench.peers import (
    LLAMA_CPP,
    TRANSFORMERS_ASSISTED,
    TRANSFORMERS_STATIC,
    SpeedSample,
    TransformersPeer,
)
from mtad.bench.workloads import SpeedWorkload, build_prompts
from mtad.config import GenerationOptions
from mtad.decoding import needs_draft_model
from mtad.errors import ConfigError
from mtad.results.provenance import describe_run
from mtad.results.speed import SCHEMA


class Runner(Protocol):
    """Whatever can be measured."""

    def reason_against(self, workload: SpeedWorkload) -> str | None:
        """Why a workload cannot be measured; None where it can."""
        ...

    def run(self, prompts: list[list[int]], workload: SpeedWorkload, seed: int) -> SpeedSample:
        """Decode one batch."""
        ...


@dataclass(frozen=True, slots=True)
class EngineRunner:
    """One of our contenders."""

    engine: Engine
    options: GenerationOptions

    def reason_against(self, workload: SpeedWorkload) -> str | None:
        """Our methods run every workload."""
        return None

    def run(self, prompts: list[list[int]], workload: SpeedWorkload, seed: int) -> SpeedSample:
        """Decode one batch with the engine."""
        options = replace(
            self.options,
            seed=seed,
            temperature=workload.temperature,
            max_new_tokens=workload.new_tokens,
            ignore_eos=True,
        )
        results = self.engine.generate(prompts, options, batch_size=len(prompts))
        num_tokens = sum(result.stats.num_tokens for result in results)
        num_iterations = max(result.stats.target_calls for result in results)
        return SpeedSample(
            prefill_s=max(result.stats.prefill_s for result in results),
            decode_s=max(result.stats.decode_s for result in results),
            num_decoded=num_tokens,
            num_tokens=num_tokens,
            log_prob_sum=sum(sum(result.log_probs) for result in results),
            target_calls=sum(result.stats.target_calls for result in results),
            num_iterations=num_iterations,
            floor_bytes=self._floor_bytes(num_iterations, sum(map(len, prompts)) + num_tokens / 2),
        )

    def _floor_bytes(self, num_iterations: int, num_tokens: float) -> int:
        """Of one call of the target an iteration, and one of the draft for every token that it drafts ahead."""
        target, draft = self.engine.traffic()
        total = target.of_calls(num_iterations, num_tokens)
        if draft is None or not needs_draft_model(self.options):
            return total
        return total + draft.of_calls(num_iterations * self.options.gamma, num_tokens)


def build_runners(
    engine: Engine,
    contenders: Sequence[Contender],
    peers: Sequence[str],
    base: GenerationOptions,
    weights: Path | None = None,
) -> dict[str, Runner]:
    """Peers and contenders by label, peers first.

    Args:
        engine: The models.
        contenders: Ours.
        peers: Names of `PEER_NAMES`.
        base: Settings that all share.
        weights: A GGUF file of the target, for llama.cpp.

    Raises:
        ConfigError: A peer needs a draft model that shares the target's vocabulary, and there is none.
        ModelLoadError: The models cannot be loaded a second time.
    """
    runners: dict[str, Runner] = {}
    if peers:
        target, draft = engine.load_stock_models()
        resolved = engine.resolve(base)
        top_k, top_p = resolved.top_k, resolved.top_p
        assert top_k is not None
        assert top_p is not None
        plain = TransformersPeer(target, None, base.gamma, top_k=top_k, top_p=top_p)
        for name in dict.fromkeys(peers):
            if name == LLAMA_CPP:
                assert weights is not None
                server = IsolatedServer(weights, torch.get_num_threads())
                runners[name] = LlamaCppPeer(server, weights, plain.score, top_k=top_k, top_p=top_p)
                continue
            is_assisted = name == TRANSFORMERS_ASSISTED
            if is_assisted and draft is None:
                raise ConfigError(f"{name} needs a draft with the target's vocabulary; name one with --draft")
            assistant = draft if is_assisted else None
            is_static = name == TRANSFORMERS_STATIC
            runners[name] = TransformersPeer(
                target, assistant, base.gamma, top_k=top_k, top_p=top_p, has_static_cache=is_static
            )
    return runners | {item.label: EngineRunner(engine, item.options) for item in contenders}


def open_speed_record(engine: Engine, contenders: Sequence[Contender], peers: Sequence[str], **setup: Any) -> Any:
    """An empty record: provenance, models, threads, and everything that must be alike to go on with it."""
    return {
        "kind": "bench",
        "schema": SCHEMA,
        "run": describe_run(),
        "models": asdict(engine.models.options),
        "threads": torch.get_num_threads(),
        "bandwidth": measure_bandwidth(engine.models.target.device),
        "setup": {
            "peers": list(dict.fromkeys(peers)),
            "contenders": {item.label: asdict(engine.resolve(item.options)) for item in contenders},
            **setup,
        },
        "skipped": {},
        "samples": [],
    }


def continue_speed_record(found: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The found record, ready to go on.

    Raises:
        ConfigError: It is of another kind, other models, contenders, workloads or number of threads.
    """
    fresh = json.loads(json.dumps(fresh))
    for key in ("kind", "schema", "models", "threads", "setup"):
        if found.get(key) != fresh[key]:
            raise ConfigError(
                f"the record is of another run (its {key} differs); name another file, or the same models, contenders "
                "and workloads"
            )
    found["continued"] = [*found.get("continued", []), fresh["run"]]
    return found


def run_speed(
    engine: Engine,
    runners: dict[str, Runner],
    workloads: Sequence[SpeedWorkload],
    repeats: int,
    record: dict[str, Any],
    note: Callable[[str], None],
) -> None:
    """Fill the record; what it holds already is not run again.

    In every repeat all runners decode the same prompts, each time another one first, after one unmeasured batch each.

    Args:
        engine: Its tokenizer makes the prompts.
        runners: By label.
        workloads: What to decode.
        repeats: Measured batches of each.
        record: Changed in place.
        note: Called with a label after each batch, measured or not.
    """
    done = {(item["workload"], item["contender"], item["repeat"]) for item in record["samples"]}
    for number, workload in enumerate(workloads):
        served = _served(runners, workload, record)
        for repeat in range(-1, repeats):
            for label in in_turns(served, max(repeat, 0)):
                is_wanted = repeat < 0 or (number, label, repeat) not in done
                if is_wanted:
                    prompts = build_prompts(engine.tokenizer, workload, max(repeat, 0))
                    sample = runners[label].run(prompts, workload, seed=max(repeat, 0))
                    if repeat >= 0:
                        place = {"workload": number, "contender": label, "repeat": repeat}
                        record["samples"].append(place | asdict(sample))
                note(label)


def _served(runners: dict[str, Runner], workload: SpeedWorkload, record: dict[str, Any]) -> list[str]:
    """Labels of those who can run a workload; the others are written down with the reason."""
    reasons = {label: runner.reason_against(workload) for label, runner in runners.items()}
    for label, reason in reasons.items():
        if reason is not None:
            record["skipped"].setdefault(workload.label, {})[label] = reason
    return [label for label, reason in reasons.items() if reason is None]
