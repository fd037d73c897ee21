"""Execution accuracy: a query runs on a read-only SQLite database, and its rows are compared with the gold rows."""

import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtad.errors import DataError

TIME_LIMIT_S = 5.0
ROW_LIMIT = 20_000
_CELL_LIMIT_BYTES = 10_000_000
_STEPS_BETWEEN_LOOKS = 1000
_MAX_PERMUTATIONS = 5000
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class QueryOutcome:
    """What a query gave: rows, or why there are none.

    Attributes:
        rows: None where the query failed.
        problem: Empty, or what went wrong.
    """

    rows: list[Row] | None
    problem: str = ""


def run_query(
    database: Path, query: str, *, time_limit_s: float = TIME_LIMIT_S, row_limit: int = ROW_LIMIT
) -> QueryOutcome:
    """Run one statement that may read and nothing else.

    Attaching, writing, pragmas and loading extensions are refused by SQLite's authorizer; the file is opened read-only
    besides.

    Args:
        database: SQLite file.
        query: One SELECT statement.
        time_limit_s: Wall seconds after which the query is stopped.
        row_limit: Most rows that it may give.

    Raises:
        DataError: The database is not there.
    """
    if not database.is_file():
        raise DataError(f"database {database} is not there; complete the data folder")
    deadline = time.monotonic() + time_limit_s
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _CELL_LIMIT_BYTES)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
        try:
            rows = connection.execute(query).fetchmany(row_limit + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return QueryOutcome(None, _problem(error, deadline))
    if len(rows) > row_limit:
        return QueryOutcome(None, f"more than {row_limit} rows")
    return QueryOutcome(rows)


def have_same_rows(predicted: Sequence[Row], gold: Sequence[Row], *, is_ordered: bool) -> bool:
    """Whether two results agree, columns in any order, as in the official test-suite evaluation.

    Args:
        predicted: Rows of the answer.
        gold: Rows of the gold query.
        is_ordered: Whether the order of the rows counts.
    """
    if len(predicted) != len(gold):
        return False
    if not gold:
        return True
    if len(predicted[0]) != len(gold[0]):
        return False
    expected = list(gold) if is_ordered else Counter(gold)
    for order in _column_orders(predicted, gold):
        rows = [tuple(row[place] for place in order) for row in predicted]
        if (rows if is_ordered else Counter(rows)) == expected:
            return True
    return False


def is_order_asked(query: str) -> bool:
    """Whether a gold query fixes the order of its rows."""
    return "order by" in " ".join(query.lower().split())


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    is_allowed = action in _ALLOWED and not (action == sqlite3.SQLITE_FUNCTION and second == "load_extension")
    return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def _problem(error: Exception, deadline: float) -> str:
    if "interrupted" in str(error) and time.monotonic() > deadline:
        return "ran past the time limit"
    if any(word in str(error) for word in ("not authorized", "authorization denied", "prohibited")):
        return "tried something other than reading"
    return str(error)


def _column_orders(predicted: Sequence[Row], gold: Sequence[Row]) -> list[tuple[int, ...]]:
    """Orders of the answer's columns in which every column holds the gold column's values."""
    own = [Counter(column) for column in zip(*predicted, strict=True)]
    fitting = [
        [place for place, column in enumerate(own) if column == Counter(wanted)] for wanted in zip(*gold, strict=True)
    ]
    orders: list[tuple[int, ...]] = [()]
    for places in fitting:
        orders = [(*order, place) for order in orders for place in places if place not in order][:_MAX_PERMUTATIONS]
    return orders
