"""Queries read, within limits, and nothing else; rows are compared as Spider compares them."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from mtad.errors import DataError
from mtad.evaluation.sql import have_same_rows, is_order_asked, run_query


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE fruit (name TEXT, price REAL)")
        connection.executemany("INSERT INTO fruit VALUES (?, ?)", [("fig", 2), ("pear", 1)])
        connection.commit()
    return path


def test_rows_come_back(database: Path) -> None:
    assert run_query(database, "SELECT name FROM fruit ORDER BY price").rows == [("pear",), ("fig",)]


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM fruit",
        "DROP TABLE fruit",
        "INSERT INTO fruit VALUES ('plum', 3)",
        "CREATE TEMP TABLE t (a)",
        "ATTACH DATABASE '/tmp/other.sqlite' AS other",
        "PRAGMA writable_schema = 1",
        "VACUUM INTO '/tmp/copy.sqlite'",
        "SELECT load_extension('evil')",
        "BEGIN EXCLUSIVE",
    ],
)
def test_whatever_is_not_reading_is_refused(database: Path, query: str) -> None:
    before = database.read_bytes()
    outcome = run_query(database, query)
    assert outcome.rows is None
    assert outcome.problem == "tried something other than reading" or "no such" in outcome.problem
    assert database.read_bytes() == before
    assert not Path("/tmp/other.sqlite").exists()
    assert not Path("/tmp/copy.sqlite").exists()


def test_two_statements_are_refused(database: Path) -> None:
    assert run_query(database, "SELECT 1; DROP TABLE fruit").rows is None


def test_a_query_that_never_ends_is_stopped(database: Path) -> None:
    started = time.monotonic()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    assert run_query(database, endless, time_limit_s=0.3).problem == "ran past the time limit"
    assert time.monotonic() - started < 3


def test_rows_and_cells_are_limited(database: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    assert run_query(database, endless, row_limit=10).problem == "more than 10 rows"
    assert run_query(database, "SELECT zeroblob(1000000000)").rows is None


def test_broken_queries_have_a_problem(database: Path, tmp_path: Path) -> None:
    assert "syntax error" in run_query(database, "SELEKT").problem
    assert "no such column" in run_query(database, "SELECT weight FROM fruit").problem
    assert run_query(database, "SELECT '\x00'").rows is None
    with pytest.raises(DataError, match="is not there; complete"):
        run_query(tmp_path / "none.sqlite", "SELECT 1")


@pytest.mark.parametrize(
    ("predicted", "gold", "is_ordered", "is_same"),
    [
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], True, True),
        ([(1, 2), (2, 1)], [(1, 1), (2, 2)], False, False),
        ([(1,), (1,)], [(1,)], False, False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1, 2)], [(1,)], False, False),
        ([], [], False, True),
        ([(None,)], [(None,)], True, True),
    ],
)
def test_rows_are_compared(predicted: list, gold: list, is_ordered: bool, is_same: bool) -> None:  # type: ignore[type-arg]
    assert have_same_rows(predicted, gold, is_ordered=is_ordered) is is_same


def test_many_equal_columns_take_no_time() -> None:
    rows = [(1,) * 12, (2,) * 12]
    started = time.monotonic()
    assert have_same_rows(rows, rows, is_ordered=False)
    assert time.monotonic() - started < 1


def test_the_gold_query_says_whether_order_counts() -> None:
    assert is_order_asked("SELECT a FROM b ORDER\n BY a")
    assert not is_order_asked("SELECT a FROM b")
