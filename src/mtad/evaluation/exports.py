"""Answers in the formats of other tools: Spider's official evaluation and FastChat."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtad.errors import DataError

Entries = Sequence[dict[str, Any]]


def write_exports(folder: Path, entries: Entries) -> None:
    """Write `spider/` (a gold file, and one of predictions per contender and seed) and `mt_bench/model_answer/`.

    Args:
        folder: Of the run.
        entries: All answers.

    Raises:
        DataError: The folder cannot be written to.
    """
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in entries:
        cells.setdefault((entry["task"], entry["contender"], entry["seed"]), []).append(entry)
    for (task, label, seed), found in cells.items():
        name = f"{file_name(label)}.seed{seed}"
        if task == "spider":
            gold = [f"{' '.join(entry['details']['gold'].split())}\t{entry['details']['database']}" for entry in found]
            _write(folder / "spider" / "gold.txt", gold)
            _write(folder / "spider" / f"{name}.pred.txt", [entry["details"]["predicted"] or "-" for entry in found])
        elif task in ("mt_bench", "spec_bench"):
            lines = [json.dumps(fastchat_answer(entry, name)) for entry in found]
            _write(folder / task / "model_answer" / f"{name}.jsonl", lines)


def fastchat_answer(entry: dict[str, Any], model: str) -> dict[str, Any]:
    """One answer as FastChat's `gen_model_answer.py` writes it."""
    return {
        "question_id": int(entry["item"]),
        "answer_id": f"{model}-{entry['item']}",
        "model_id": model,
        "choices": [{"index": 0, "turns": entry["outputs"]}],
        "tstamp": 0.0,
    }


def file_name(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.=_-]+", "_", label)


def _write(path: Path, lines: Sequence[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; name another folder") from error
