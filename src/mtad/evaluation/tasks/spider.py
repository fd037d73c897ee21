"""Spider: questions about databases, answered in SQL and judged by running it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtad.errors import DataError
from mtad.evaluation.files import find_file, read_json_array
from mtad.evaluation.items import Item, Score, Task, spread
from mtad.evaluation.sql import QueryOutcome, have_same_rows, is_order_asked, run_query

_QUESTION = {"db_id": str, "question": str, "query": str}
_SCHEMA = {
    "db_id": str,
    "table_names_original": list,
    "column_names_original": list,
    "foreign_keys": list,
}
_FENCE = re.compile(r"```(?:sql)?\s*(.*?)(?:```|$)", re.DOTALL | re.IGNORECASE)
_LEAD = re.compile(r"^\s*(?:sql\s*:)?\s*", re.IGNORECASE)


def describe_schema(schema: dict[str, Any]) -> str:
    """A database in lines: one per table with its columns, and its foreign keys where there are any."""
    tables, columns = schema["table_names_original"], schema["column_names_original"]
    lines = [
        f"{name}({', '.join(column for owner, column in columns if owner == index)})"
        for index, name in enumerate(tables)
    ]
    keys = [
        " = ".join(f"{tables[columns[place][0]]}.{columns[place][1]}" for place in pair)
        for pair in schema["foreign_keys"]
    ]
    return "\n".join(lines + ([f"Foreign keys: {', '.join(keys)}"] if keys else []))


def extract_query(answer: str) -> str:
    """The first statement of an answer, on one line, without fences and lead."""
    fenced = _FENCE.search(answer)
    text = _LEAD.sub("", fenced.group(1) if fenced else answer)
    return " ".join(text.split("\n\n")[0].split(";")[0].split())


def load_spider(data: Path, shots: int) -> list[Item]:
    """The questions of `spider/dev.json`; worked examples come from `spider/train_spider.json`.

    Without examples the prompt is one user message; with them it is plain text that goes on after `SQL:`.

    Raises:
        DataError: A file, a database or a schema is missing or broken.
    """
    path = find_file(data, ["spider/dev.json"])
    tables = find_file(data, ["spider/tables.json"])
    schemas = {schema["db_id"]: schema for schema in read_json_array(tables, _SCHEMA)}
    questions = read_json_array(path, _QUESTION)
    examples = []
    if shots:
        train = read_json_array(find_file(data, ["spider/train_spider.json"]), _QUESTION)
        examples = [
            f"{_ask(entry, schemas, tables)} {' '.join(entry['query'].split())}" for entry in spread(train, shots)
        ]
    missing = next((entry["db_id"] for entry in questions if not _database(data, entry).is_file()), None)
    if missing is not None:
        raise DataError(f"data folder {data} lacks spider/database/{missing}/{missing}.sqlite; complete it")
    return [
        Item(
            item_id=f"{index:04d}",
            group=entry["db_id"],
            turns=("\n\n".join([*examples, _ask(entry, schemas, tables)]),),
            is_chat=False if shots else None,
            max_new_tokens=96,
            stop=("\n\n",) if shots else (),
            reference={"query": entry["query"], "database": str(_database(data, entry))},
        )
        for index, entry in enumerate(questions)
    ]


def training_pairs(data: Path) -> list[tuple[str, str]]:
    """The questions of `spider/train_spider.json` as prompts, each with its query on one line.

    Raises:
        DataError: A file or a schema is missing or broken.
    """
    tables = find_file(data, ["spider/tables.json"])
    schemas = {schema["db_id"]: schema for schema in read_json_array(tables, _SCHEMA)}
    entries = read_json_array(find_file(data, ["spider/train_spider.json"]), _QUESTION)
    return [(_ask(entry, schemas, tables), " ".join(entry["query"].split())) for entry in entries]


def score_spider(item: Item, answers: Sequence[str]) -> Score:
    """1 where the answer's rows are the gold query's; their order counts where the gold query sorts."""
    gold_query, database = item.reference["query"], Path(item.reference["database"])
    query = extract_query(answers[0])
    gold = run_query(database, gold_query)
    if gold.rows is None:
        raise DataError(
            f"the gold query of question {item.item_id} fails on {database} ({gold.problem}); fetch it again"
        )
    outcome = run_query(database, query) if query else QueryOutcome(None, "no query")
    is_right = outcome.rows is not None and have_same_rows(
        outcome.rows, gold.rows, is_ordered=is_order_asked(gold_query)
    )
    details = {"predicted": query, "gold": gold_query, "database": item.group}
    return Score(float(is_right), details | {"is_gold_empty": not gold.rows, "problem": outcome.problem})


def _ask(entry: dict[str, Any], schemas: dict[str, Any], tables: Path) -> str:
    if entry["db_id"] not in schemas:
        raise DataError(f"{tables} lacks the schema of {entry['db_id']}; fetch it again")
    return f"Schema:\n{describe_schema(schemas[entry['db_id']])}\nQuestion: {entry['question']}\nSQL:"


def _database(data: Path, entry: dict[str, Any]) -> Path:
    name: str = entry["db_id"]
    return data / "spider" / "database" / name / f"{name}.sqlite"


SPIDER = Task(name="spider", metric="execution accuracy", load=load_spider, score=score_spider, max_shots=8)
