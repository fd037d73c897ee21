"""The record of an evaluation: what was run, on what, and whether a found one may be gone on with."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtad.api import Engine
from mtad.errors import ConfigError
from mtad.evaluation.plan import Entrant, EvaluationPlan
from mtad.results.evaluation import SCHEMA
from mtad.results.files import read_json, write_json
from mtad.results.provenance import describe_run


def open_run(
    path: Path, engine: Engine, plan: EvaluationPlan, draft: str | None, record: dict[str, Any] | None
) -> dict[str, Any]:
    """The record of a run with the entrants of one draft, written out.

    Args:
        path: Where it is, or will be.
        engine: The models with that draft.
        plan: What is run.
        draft: The plan's name for it.
        record: What an earlier draft of the same process has left; None at first.

    Raises:
        ConfigError: The file is the record of another run.
    """
    fresh = _describe(engine, plan)
    if record is None and path.exists():
        record = _checked(read_json(path), fresh, path)
        record["continued"] = [*record.get("continued", []), fresh["run"]]
    if record is None:
        record = fresh | {"contenders": {}}
    for entrant in plan.entrants:
        if entrant.draft == draft:
            settings = _settings(engine, entrant)
            if record["contenders"].setdefault(entrant.label, settings) != settings:
                raise ConfigError(f"{path} has {entrant.label} with other settings; name another folder with --out")
    record["is_complete"] = False
    write_json(path, record)
    return record


def _describe(engine: Engine, plan: EvaluationPlan) -> dict[str, Any]:
    tasks = {
        group.task.name: {
            "metric": group.task.metric,
            "shots": group.shots,
            "num_items": len(group.items),
            "items_sha256": hashlib.sha256(repr([item.turns for item in group.items]).encode()).hexdigest(),
        }
        for group in plan.tasks
    }
    options = asdict(plan.options) | {"limit": None, "allow_code_execution": None}
    workload = {"first_seed": plan.first_seed, "system": plan.system, "max_new_tokens": plan.max_new_tokens}
    description = {
        "kind": "evaluate",
        "schema": SCHEMA,
        "run": describe_run(),
        "models": asdict(engine.models.options) | ({"draft": None} if len(plan.drafts()) > 1 else {}),
        "workload": workload | options,
        "tasks": tasks,
    }
    result: dict[str, Any] = json.loads(json.dumps(description))
    return result


def _checked(found: dict[str, Any], fresh: dict[str, Any], path: Path) -> dict[str, Any]:
    for key in ("kind", "schema", "models", "workload", "tasks"):
        if found.get(key) != fresh[key]:
            raise ConfigError(
                f"{path} is of another run (its {key} differs: {found.get(key)!r}, expected {fresh[key]!r}); "
                "name another folder with --out, or the same models, tasks, seeds and batch size"
            )
    return found


def _settings(engine: Engine, entrant: Entrant) -> dict[str, Any]:
    settings = asdict(engine.resolve(entrant.contender.options)) | {"seed": None}
    document = {"settings": settings, "is_lossless": entrant.contender.is_lossless, "draft": entrant.draft}
    result: dict[str, Any] = json.loads(json.dumps(document))
    return result
