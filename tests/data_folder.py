"""A data folder of a few items of every task, in the published formats."""

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

SCHEMA = {
    "db_id": "shop",
    "table_names_original": ["fruit", "sale"],
    "column_names_original": [[-1, "*"], [0, "name"], [0, "price"], [1, "fruit_name"], [1, "amount"]],
    "foreign_keys": [[3, 1]],
}
QUESTIONS = [
    {"db_id": "shop", "question": "Which fruit are there?", "query": "SELECT name FROM fruit"},
    {"db_id": "shop", "question": "Which by price?", "query": "SELECT name FROM fruit ORDER BY price"},
    {"db_id": "shop", "question": "Which are free?", "query": "SELECT name FROM fruit WHERE price = 0"},
]
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def add(a, b):\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
ARTICLE = {"article": "cats sleep all day", "summary": "cats sleep", "highlights": "cats sleep"}


def write_data_folder(folder: Path) -> Path:
    """Fill the folder and return it."""
    _write_spider(folder / "spider")
    _write_lines(folder / "gsm8k/test.jsonl", [{"question": "1+1?", "answer": "so #### 2"}] * 3)
    _write_lines(folder / "humaneval/HumanEval.jsonl.gz", [HUMANEVAL])
    mbpp = [
        {"task_id": n, "text": "Add.", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
        for n in (2, 3, 4, 11, 12, 600)
    ]
    _write_lines(folder / "mbpp/mbpp.jsonl", mbpp)
    for name in ("xsum/test_500.jsonl", "cnn_dm/test.jsonl"):
        _write_lines(folder / name, [ARTICLE])
    talk = [
        {"question_id": 81, "category": "writing", "turns": ["say a", "now b"]},
        {"question_id": 101, "category": "math", "turns": ["1+1?", "and 2+2?"]},
    ]
    _write_lines(folder / "mt_bench/question.jsonl", talk)
    _write_lines(folder / "mt_bench/reference_gpt-4.jsonl", [{"question_id": 101, "choices": [{"turns": ["2", "4"]}]}])
    _write_lines(
        folder / "spec_bench/question.jsonl", [*talk, {"question_id": 400, "category": "qa", "turns": ["who?"]}]
    )
    (folder / "wikitext-2").mkdir()
    (folder / "wikitext-2/test.txt").write_text(" = title = \n" + "word " * 120 + "\nshort\n")
    return folder


def _write_spider(folder: Path) -> None:
    (folder / "database/shop").mkdir(parents=True)
    for name, content in (("tables", [SCHEMA]), ("dev", QUESTIONS), ("train_spider", QUESTIONS)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    with closing(sqlite3.connect(folder / "database/shop/shop.sqlite")) as connection:
        connection.execute("CREATE TABLE fruit (name TEXT, price REAL)")
        connection.executemany("INSERT INTO fruit VALUES (?, ?)", [("fig", 2), ("pear", 1)])
        connection.commit()


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
