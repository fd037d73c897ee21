"""Runs contenders over a prompt set, interleaved, into a record that can be gone on with."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mtad.api import Engine, PromptFormat
from mtad.api.contenders import Contender, in_turns
from mtad.errors import ConfigError
from mtad.results.comparison import SCHEMA, AnswerFigures
from mtad.results.provenance import describe_run
from mtad.structures import GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What every contender decodes.

    Attributes:
        prompts: Texts or conversations.
        style: How texts are wrapped.
        seeds: Seeds of the runs, each over all prompts.
        batch_size: Prompts decoded at once.
    """

    prompts: Sequence[Any]
    style: PromptFormat
    seeds: Sequence[int]
    batch_size: int

    def batches(self) -> Iterator[tuple[int, int]]:
        """Seed and first prompt of every batch."""
        for seed in self.seeds:
            for start in range(0, len(self.prompts), self.batch_size):
                yield seed, start


def open_record(engine: Engine, contenders: Sequence[Contender], workload: Workload) -> dict[str, Any]:
    """An empty record of a comparison: provenance, models, prompts, and a row for every contender."""
    content = json.dumps(list(workload.prompts), sort_keys=True).encode()
    return {
        "kind": "compare",
        "schema": SCHEMA,
        "run": describe_run(),
        "models": asdict(engine.models.options),
        "workload": {
            "num_prompts": len(workload.prompts),
            "prompts_sha256": hashlib.sha256(content).hexdigest(),
            "style": asdict(workload.style),
            "seeds": list(workload.seeds),
            "batch_size": workload.batch_size,
        },
        "rows": {
            item.label: {
                "settings": _settings(engine, item),
                "is_lossless": item.is_lossless,
                "batches": [],
                "decode_s": [],
                "batch_tokens": [],
                "answers": [],
            }
            for item in contenders
        },
    }


def continue_record(found: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The found record with the fresh one's missing rows, ready to go on.

    Raises:
        ConfigError: The found record is of another kind, another workload or other settings.
    """
    for key in ("kind", "schema", "models", "workload"):
        if found.get(key) != fresh[key]:
            raise ConfigError(
                f"the record is of another run (its {key} differs: {found.get(key)!r}, expected {fresh[key]!r}); "
                "name another file, or the same models, prompts, seeds and batch size"
            )
    for label, row in fresh["rows"].items():
        kept = found["rows"].setdefault(label, row)
        if kept["settings"] != row["settings"]:
            raise ConfigError(f"the record has {label} with other settings; name another file")
    found["continued"] = [*found.get("continued", []), fresh["run"]]
    return found


def run_comparison(
    engine: Engine,
    contenders: Sequence[Contender],
    workload: Workload,
    record: dict[str, Any],
    note: Callable[[str], None],
) -> None:
    """Fill the record, batch by batch; what it holds already is not run again.

    All contenders decode a batch before the next one comes, each batch another contender first, so that a machine
    that slows down or warms up treats all alike.

    Args:
        engine: The models.
        contenders: The lines.
        workload: Prompts, seeds and batch size.
        record: Changed in place.
        note: Called with the contender's label after each of its batches.
    """
    for turn, (seed, start) in enumerate(workload.batches()):
        for contender in in_turns(contenders, turn):
            row = record["rows"][contender.label]
            if [seed, start] not in row["batches"]:
                _run_batch(engine, contender, workload, row, seed, start)
            note(contender.label)


def _run_batch(
    engine: Engine, contender: Contender, workload: Workload, row: dict[str, Any], seed: int, start: int
) -> None:
    prompts = list(workload.prompts[start : start + workload.batch_size])
    results = engine.generate(
        prompts, replace(contender.options, seed=seed), style=workload.style, batch_size=workload.batch_size
    )
    row["answers"] += [asdict(_figures(start + index, result)) for index, result in enumerate(results)]
    row["decode_s"].append(max(result.stats.decode_s for result in results))
    row["batch_tokens"].append(sum(result.stats.num_tokens for result in results))
    row["batches"].append([seed, start])


def _figures(prompt: int, result: GenerationResult) -> AnswerFigures:
    depth = len(result.stats.acceptance_by_depth)
    num_kept, refused = sum(result.accepted_lengths), result.stats.refused_share
    return AnswerFigures(
        prompt=prompt,
        num_tokens=result.stats.num_tokens,
        target_calls=result.stats.target_calls,
        log_prob_sum=sum(result.log_probs),
        kept_lengths=tuple(result.accepted_lengths.count(length) for length in range(depth + 1)),
        refused_sum=refused * num_kept if refused is not None else None if num_kept else 0.0,
        finish_reason=result.finish_reason,
    )


def _settings(engine: Engine, contender: Contender) -> dict[str, Any]:
    """Every resolved setting but the seed, which the workload names; as JSON gives it back."""
    settings = asdict(engine.resolve(contender.options)) | {"seed": None}
    result: dict[str, Any] = json.loads(json.dumps(settings))
    return result
