"""MT-Bench and Spec-Bench: conversations of one or two turns, without a right answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtad.errors import DataError
from mtad.evaluation.files import find_file, read_json_lines
from mtad.evaluation.items import Item, Task, no_score

_QUESTION = {"question_id": int, "category": str, "turns": list}
MT_BENCH_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SPEC_BENCH_COLUMNS = {
    "translation": "Translation",
    "summarization": "Summarization",
    "qa": "QA",
    "math_reasoning": "Math Reasoning",
    "rag": "RAG",
} | dict.fromkeys(MT_BENCH_CATEGORIES, "MT-bench")


def load_mt_bench(data: Path, shots: int) -> list[Item]:
    """The questions of MT-Bench, with reference answers where there are some."""
    entries = _read_questions(find_file(data, ["mt_bench/question.jsonl"]))
    references: dict[int, list[str]] = {}
    path = data / "mt_bench" / "reference_gpt-4.jsonl"
    if path.is_file():
        for entry in read_json_lines(path, {"question_id": int, "choices": list}):
            references[entry["question_id"]] = entry["choices"][0]["turns"]
    return [
        _item(entry, entry["category"], 512, {"reference": references.get(entry["question_id"])}) for entry in entries
    ]


def load_spec_bench(data: Path, shots: int) -> list[Item]:
    """The questions of Spec-Bench, grouped by its columns.

    Raises:
        DataError: A category that belongs to no column.
    """
    path = find_file(data, ["spec_bench/question.jsonl"])
    entries = _read_questions(path)
    unknown = next((entry["category"] for entry in entries if entry["category"] not in SPEC_BENCH_COLUMNS), None)
    if unknown is not None:
        raise DataError(f"{path} has the unknown category {unknown!r}; known are {', '.join(SPEC_BENCH_COLUMNS)}")
    return [_item(entry, SPEC_BENCH_COLUMNS[entry["category"]], 256, {}) for entry in entries]


def _read_questions(path: Path) -> list[dict[str, Any]]:
    entries = read_json_lines(path, _QUESTION)
    for entry in entries:
        turns: Sequence[Any] = entry["turns"]
        if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise DataError(f"{path}: question {entry['question_id']} has an empty turn; fetch the file again")
    return entries


def _item(entry: dict[str, Any], group: str, length: int, reference: dict[str, Any]) -> Item:
    return Item(
        item_id=str(entry["question_id"]),
        group=group,
        turns=tuple(entry["turns"]),
        max_new_tokens=length,
        reference=reference | {"category": entry["category"]},
    )


MT_BENCH = Task(name="mt_bench", metric="", load=load_mt_bench, score=no_score)
SPEC_BENCH = Task(name="spec_bench", metric="", load=load_spec_bench, score=no_score)
