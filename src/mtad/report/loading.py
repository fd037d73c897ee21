"""Reads records, of evaluations and comparisons alike, into rows of one form."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtad.errors import ConfigError
from mtad.results import comparison, energy, evaluation
from mtad.results.files import read_json
from mtad.results.item_log import read_entries

_SCHEMAS = {"evaluate": evaluation.SCHEMA, "compare": comparison.SCHEMA, "overhead": 1, "energy": energy.SCHEMA}
PROMPTS = "prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run.

    Attributes:
        name: The folder's or file's name.
        document: The record as it was read.
        rows: One for each task and contender, in the form of `results.evaluation.TaskSummary` as JSON; for energy, one
            for each workload and contender in the form of `results.energy.EnergySummary`.
        entries: Answers, where they lie beside the record.
    """

    name: str
    document: dict[str, Any]
    rows: list[dict[str, Any]]
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """`evaluate`, `compare`, `overhead` or `energy`."""
        return str(self.document["kind"])


def load_record(path: Path) -> Record:
    """The record of a folder or a file.

    Raises:
        ConfigError: It is not there, of another kind or schema, or has no rows yet.
        DataError: Its answers are broken.
    """
    file = path / "run.json" if path.is_dir() else path
    document = read_json(file)
    kind, schema = document.get("kind"), document.get("schema")
    if kind not in _SCHEMAS:
        raise ConfigError(f"{file} is no record for a report (kind {kind!r}); expected one of {', '.join(_SCHEMAS)}")
    if schema != _SCHEMAS[kind]:
        raise ConfigError(
            f"{file} has schema {schema!r}, expected {_SCHEMAS[kind]}; make it again with this version of mtad"
        )
    answers = file.parent / "items.jsonl"
    entries = read_entries(answers) if kind == "evaluate" and answers.exists() else []
    rows = _rows(document, entries)
    if not rows:
        raise ConfigError(f"{file} has no results yet; let the run end first")
    return Record(
        name=path.stem if path.is_file() else path.resolve().name, document=document, rows=rows, entries=entries
    )


def _rows(document: dict[str, Any], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if document["kind"] == "compare":
        return [_plain_row(row) for row in comparison.summaries_to_json(comparison.summarize(document))]
    if document["kind"] == "energy":
        return energy.energy_to_json(energy.summarize_energy(document))
    if "rows" in document:
        rows: list[dict[str, Any]] = document["rows"]
        return rows
    return evaluation.summaries_to_json(evaluation.summarize_evaluation(entries))


def _plain_row(decoding: dict[str, Any]) -> dict[str, Any]:
    """A row of a comparison, which has no scores, in the form of a task's."""
    empty = dict.fromkeys(("score", "score_change", "p_value", "score_without_empty", "diversity"))
    return empty | {
        "task": PROMPTS,
        "contender": decoding["label"],
        "num_items": decoding["num_answers"],
        "num_seeds": 1,
        "groups": {},
        "pass_at": {},
        "decoding": decoding,
    }
