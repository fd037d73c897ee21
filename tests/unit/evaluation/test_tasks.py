"""Every task reads its files, asks its questions and scores answers; broken files are named."""

from decimal import Decimal
from pathlib import Path

import pytest
from tests.data_folder import write_data_folder

from mtad.errors import ConfigError, DataError
from mtad.evaluation.items import Item, spread
from mtad.evaluation.tasks import TASKS, find_task
from mtad.evaluation.tasks.gsm8k import extract_number
from mtad.evaluation.tasks.spider import extract_query


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data_folder(tmp_path / "data")


def items(data: Path, name: str, shots: int | None = None) -> list[Item]:
    task = TASKS[name]
    return task.load(data, task.shots if shots is None else shots)


COUNTS = {"spider": 3, "humaneval": 1, "mbpp": 2, "gsm8k": 3, "xsum": 1, "cnn_dm": 1, "mt_bench": 2, "spec_bench": 3}


@pytest.mark.parametrize("name", TASKS)
def test_items_have_their_own_names_and_something_to_say(data: Path, name: str) -> None:
    found = items(data, name)
    assert len(found) == COUNTS.get(name, 1)
    assert len({item.item_id for item in found}) == len(found)
    assert all(turn.strip() for item in found for turn in item.turns)


@pytest.mark.parametrize(
    ("name", "answer", "value"),
    [
        ("spider", "SELECT name FROM fruit;", 1.0),
        ("spider", "```sql\nselect name\nfrom fruit\n```", 1.0),
        ("spider", "SELECT price FROM fruit", 0.0),
        ("spider", "", 0.0),
        ("spider", "DROP TABLE fruit", 0.0),
        ("humaneval", "    return a + b\n", 1.0),
        ("humaneval", "    return a - b\n", 0.0),
        ("mbpp", "def f(): return 1", 1.0),
        ("mbpp", "Here:\n```python\ndef f(): return 1\n```\n", 1.0),
        ("mbpp", "def g(): return 1", 0.0),
        ("gsm8k", " It is 1 + 1 = 2. The answer is 2.", 1.0),
        ("gsm8k", " 3", 0.0),
        ("gsm8k", "who knows", 0.0),
        ("xsum", "cats sleep", 1.0),
        ("xsum", "dogs bark", 0.0),
        ("mt_bench", "a", None),
    ],
)
def test_answers_are_scored(data: Path, name: str, answer: str, value: float | None) -> None:
    assert TASKS[name].score(items(data, name)[0], [answer, answer]).value == value


def test_the_spider_prompt_has_the_schema(data: Path) -> None:
    first = items(data, "spider")[0]
    assert first.turns == (
        "Schema:\nfruit(name, price)\nsale(fruit_name, amount)\nForeign keys: sale.fruit_name = fruit.name\n"
        "Question: Which fruit are there?\nSQL:",
    )
    assert first.is_chat is None
    few = items(data, "spider", shots=2)[0]
    assert few.turns[0].count("Question:") == 3
    assert "SQL: SELECT name FROM fruit\n\nSchema:" in few.turns[0]
    assert few.is_chat is False


def test_order_counts_where_it_is_asked_and_empty_gold_is_marked(data: Path) -> None:
    _, by_price, free = items(data, "spider")
    score = TASKS["spider"].score
    assert score(by_price, ["SELECT name FROM fruit ORDER BY price DESC"]).value == 0.0
    assert score(by_price, ["SELECT name FROM fruit ORDER BY price"]).value == 1.0
    assert score(free, ["SELECT name FROM fruit WHERE price < 0"]).details["is_gold_empty"] is True


def test_groups_are_columns_and_categories(data: Path) -> None:
    assert [item.group for item in items(data, "spec_bench")] == ["MT-bench", "MT-bench", "QA"]
    assert [item.reference["reference"] for item in items(data, "mt_bench")] == [None, ["2", "4"]]


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,200", "1200"), ("The answer is $3.50.", "3.50"), ("5 and 7", "7"), ("-4", "-4"), ("none", None)],
)
def test_numbers_are_found(text: str, number: str | None) -> None:
    assert extract_number(text) == (None if number is None else Decimal(number))


def test_queries_are_found() -> None:
    assert extract_query(" SQL: SELECT 1 ; SELECT 2") == "SELECT 1"
    assert extract_query("SELECT a\nFROM b\n\nThis query") == "SELECT a FROM b"


def test_items_are_spread() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), None) == spread(range(3), 9) == [0, 1, 2]


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_folder_or_file_is_one_sentence(data: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not there; name the folder"):
        items(tmp_path / "nowhere", name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"lacks .*; complete it, or leave the task out"):
        items(tmp_path / "empty", name)


@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("gsm8k", "gsm8k/test.jsonl", b'{"question": "a", "answer": "1"}\n{"que', "line 2: not JSON"),
        ("gsm8k", "gsm8k/test.jsonl", b"[]\n", "line 1: expected an object"),
        ("gsm8k", "gsm8k/test.jsonl", b'{"question": "a", "answer": "none"}', "line 1: the answer has no number"),
        ("gsm8k", "gsm8k/test.jsonl", b"\n", "is empty"),
        ("gsm8k", "gsm8k/test.jsonl", b"\xff", "is not UTF-8 at byte 0"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", b"\x1f\x8b\x08\x00half", "is not whole"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", b"text", "is not whole"),
        ("mbpp", "mbpp/mbpp.jsonl", b'{"task_id": "x"}', "line 1: task_id must be int"),
        ("mbpp", "mbpp/mbpp.jsonl", b'{"task_id": 2, "text": "", "code": "", "test_list": []}', "lacks problem 3"),
        ("spider", "spider/dev.json", b"[{}]", "entry 1: db_id must be str"),
        ("spider", "spider/dev.json", b"{}", "holds no array"),
        ("spider", "spider/tables.json", b"[", "is not JSON"),
        ("mt_bench", "mt_bench/question.jsonl", b'{"question_id": 1, "category": "a", "turns": [""]}', "empty turn"),
        (
            "spec_bench",
            "spec_bench/question.jsonl",
            b'{"question_id": 1, "category": "a", "turns": ["b"]}',
            "unknown cat",
        ),
        ("wikitext", "wikitext-2/test.txt", b"short", "no paragraph"),
    ],
)
def test_a_broken_file_is_one_sentence(data: Path, name: str, path: str, content: bytes, message: str) -> None:
    (data / path).write_bytes(content)
    with pytest.raises(DataError, match=message):
        items(data, name)


def test_missing_databases_and_schemas_are_named(data: Path) -> None:
    (data / "spider/database/shop/shop.sqlite").unlink()
    with pytest.raises(DataError, match=r"lacks spider/database/shop/shop\.sqlite"):
        items(data, "spider")


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown task 'chess'; known tasks are spider"):
        find_task("chess")
