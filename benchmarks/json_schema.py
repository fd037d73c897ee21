"""Are answers under a JSON schema valid, and what does the constraint cost: 100 prompts with and without it.

    python benchmarks/json_schema.py --record benchmarks/records/json_schema.json

Every prompt shows the model a schema and names a topic. Answers are judged by jsonschema, which knows nothing of the
constraint. The share of time spent on constraints includes masks, their transfer and their application to both models.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from tqdm import tqdm

from mtad import Engine, GenerationResult
from mtad.results.files import write_json
from mtad.results.provenance import describe_run

MAX_NEW_TOKENS = 200


def text(longest: int) -> dict[str, Any]:
    """A string of at least two and at most `longest` characters."""
    return {"type": "string", "minLength": 2, "maxLength": longest}


def whole(least: int, most: int) -> dict[str, Any]:
    """A whole number between bounds."""
    return {"type": "integer", "minimum": least, "maximum": most}


def record(**properties: Any) -> dict[str, Any]:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "person": record(
        name=text(30), age=whole(0, 120), hobbies={"type": "array", "items": text(16), "minItems": 1, "maxItems": 3}
    ),
    "city": record(name=text(24), country=text(24), population=whole(1, 40_000_000), capital={"type": "boolean"}),
    "book": record(
        title=text(48),
        author=text(32),
        year=whole(1500, 2030),
        genre={"enum": ["novel", "poetry", "science", "history", "children"]},
    ),
    "weather report": record(
        place=text(24),
        celsius={"type": "number", "minimum": -60, "maximum": 60},
        sky={"enum": ["clear", "cloudy", "rain", "snow", "fog"]},
        warning={"anyOf": [{"type": "null"}, text(40)]},
    ),
    "product": record(
        name=text(32),
        price=record(amount=whole(1, 100_000), currency={"enum": ["EUR", "USD", "JPY"]}),
        tags={"type": "array", "items": text(12), "maxItems": 3},
    ),
}

TOPICS = (
    "mountains", "the sea", "winter", "music", "old trains", "gardens", "bread", "chess", "stars", "horses",
    "rivers", "painting", "football", "tea", "bridges", "birds", "islands", "clocks", "deserts", "cinema",
)  # fmt: skip


def tasks() -> Iterator[tuple[str, str]]:
    """Schema name and prompt of every task, one schema after the other."""
    for name, schema in SCHEMAS.items():
        request = f"Answer with one JSON object of this schema and nothing else:\n{json.dumps(schema)}"
        for topic in TOPICS:
            yield name, f"Invent a {name} that has to do with {topic}. {request}"


def is_valid(answer: str, schema: dict[str, Any]) -> bool:
    """Whether an answer is JSON of a schema."""
    try:
        document = json.loads(answer)
    except ValueError:
        return False
    return bool(Draft202012Validator(schema).is_valid(document))


def decode(engine: Engine, options: argparse.Namespace, *, constrained: bool) -> list[tuple[str, GenerationResult]]:
    """Schema name and answer of every task."""
    settings: dict[str, Any] = {"method": options.method, "seed": options.seed, "max_new_tokens": MAX_NEW_TOKENS}
    answers = []
    for name, schema in tqdm(SCHEMAS.items(), unit="schema", disable=None):
        prompts = [prompt for task, prompt in tasks() if task == name]
        chosen = settings | ({"json_schema": schema} if constrained else {})
        results = []
        # Whole batches, one after the other: their times are summed up.
        for start in range(0, len(prompts), options.batch_size):
            batch = prompts[start : start + options.batch_size]
            results += engine.generate(batch, batch_size=options.batch_size, **chosen)
        answers += [(name, result) for result in results]
    return answers


def summary(answers: list[tuple[str, GenerationResult]], batch_size: int) -> dict[str, Any]:
    """Validity, tokens per call, and where the time went."""
    results = [result for _, result in answers]
    # The figures of a batch's time are those that its last row saw.
    batches = [results[start : start + batch_size] for start in range(0, len(results), batch_size)]
    decode_s = sum(max(result.stats.decode_s for result in batch) for batch in batches)
    constraint_s = sum(max(result.stats.constraint_s for result in batch) for batch in batches)
    reasons = [result.finish_reason for result in results]
    return {
        "num_answers": len(results),
        "num_valid": sum(is_valid(result.text, SCHEMAS[name]) for name, result in answers),
        "num_ended": reasons.count("stop"),
        "tokens_per_call": sum(len(result.token_ids) for result in results)
        / sum(result.stats.target_calls for result in results),
        "mean_tokens": sum(len(result.token_ids) for result in results) / len(results),
        "decode_s": decode_s,
        "constraint_share": constraint_s / decode_s,
        "ms_per_token": 1000 * decode_s / sum(len(result.token_ids) for result in results),
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Validity and cost of answers under a JSON schema.")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--method", default="mmtad")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    options = parser.parse_args()
    engine = Engine.from_pretrained(options.target, draft=options.draft, dtype=options.dtype, device=options.device)
    engine.generate("Hello.", max_new_tokens=8)
    rows = {}
    document: dict[str, Any] = {"kind": "json_schema", "run": describe_run(), "rows": rows}
    for label, constrained in (("with the schema", True), ("without", False)):
        answers = decode(engine, options, constrained=constrained)
        rows[label] = summary(answers, options.batch_size)
        rows[label]["texts"] = [result.text for _, result in answers]
        print(label, json.dumps({name: value for name, value in rows[label].items() if name != "texts"}), flush=True)
    document["config"] = answers[0][1].config
    if options.record is not None:
        write_json(options.record, document)
    return 0 if rows["with the schema"]["num_valid"] == rows["with the schema"]["num_answers"] else 1


if __name__ == "__main__":
    sys.exit(main())
