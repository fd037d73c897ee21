"""Writes Spider questions as prompts: `python benchmarks/spider_prompts.py SPIDER_FOLDER OUTPUT.jsonl [--count N]`.

Each line holds `prompt` (the schema of the question's database, its foreign keys and the question), `database` and
`query` (the reference answer), ready for `mtad generate --prompts-file`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def schema_text(schema: dict[str, Any]) -> str:
    """One line per table with its original column names; a line of foreign keys where there are any."""
    names = schema["table_names_original"]
    columns = schema["column_names_original"]
    lines = []
    for number, name in enumerate(names):
        own = ", ".join(column for table, column in columns if table == number)
        lines.append(f"{name}({own})")
    if schema["foreign_keys"]:
        keys = [f"{_column(schema, left)} = {_column(schema, right)}" for left, right in schema["foreign_keys"]]
        lines.append("Foreign keys: " + ", ".join(keys))
    return "\n".join(lines)


def question_prompt(schema: dict[str, Any], question: str) -> str:
    """The zero-shot prompt that the text-to-SQL adapter was trained on."""
    return f"Schema:\n{schema_text(schema)}\nQuestion: {question}\nSQL:"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write Spider questions as prompts.")
    parser.add_argument("folder", type=Path, help="folder with dev.json and tables.json")
    parser.add_argument("output", type=Path, help="JSONL file to write")
    parser.add_argument("--count", type=int, help="evenly spaced questions (default: all)")
    options = parser.parse_args()
    schemas = {item["db_id"]: item for item in json.loads((options.folder / "tables.json").read_text("utf-8"))}
    questions = json.loads((options.folder / "dev.json").read_text("utf-8"))
    count = min(options.count or len(questions), len(questions))
    chosen = [questions[index * len(questions) // count] for index in range(count)]
    with options.output.open("w", encoding="utf-8") as output:
        for item in chosen:
            prompt = question_prompt(schemas[item["db_id"]], item["question"])
            record = {"prompt": prompt, "database": item["db_id"], "query": item["query"]}
            output.write(json.dumps(record, ensure_ascii=False) + "\n")
    return 0


def _column(schema: dict[str, Any], index: int) -> str:
    table, column = schema["column_names_original"][index]
    return f"{schema['table_names_original'][table]}.{column}"


if __name__ == "__main__":
    sys.exit(main())
