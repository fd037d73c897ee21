"""MT-Bench's judge: any OpenAI-compatible endpoint, each of its judgements kept."""

import hashlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtad.errors import JudgeError
from mtad.evaluation.files import find_file, read_json_lines
from mtad.results.item_log import read_lines

_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]|\[(\d+(?:\.\d+)?)\]")
_NEEDS_REFERENCE = ("math", "reasoning", "coding")

Ask = Callable[[dict[str, Any]], str]
"""Sends a request of the chat completions API and gives the text of the reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the judge is.

    Attributes:
        url: Base address, such as `http://localhost:8000/v1`.
        key: Bearer token; empty sends none.
        timeout_s: Seconds to wait for a reply.
    """

    url: str
    key: str = ""
    timeout_s: float = 60.0

    def ask(self, request: dict[str, Any]) -> str:
        """See `Ask`.

        Raises:
            JudgeError: No reply, or one that is no chat completion.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            call = urllib.request.Request(address, json.dumps(request).encode(), headers)
            with urllib.request.urlopen(call, timeout=self.timeout_s) as reply:
                text = json.load(reply)["choices"][0]["message"]["content"]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise JudgeError(f"the judge at {address} gave no judgement ({error}); check --endpoint") from error
        if not isinstance(text, str):
            raise JudgeError(f"the judge at {address} gave no text; check --endpoint")
        return text


def read_templates(data: Path) -> dict[str, dict[str, Any]]:
    """The judge's prompts by name, from MT-Bench's `judge_prompts.jsonl`.

    Raises:
        DataError: The file is missing or broken.
    """
    path = find_file(data, ["mt_bench/judge_prompts.jsonl"])
    required = {"name": str, "system_prompt": str, "prompt_template": str}
    return {entry["name"]: entry for entry in read_json_lines(path, required)}


def build_request(
    templates: dict[str, dict[str, Any]], entry: dict[str, Any], turn: int, reference: Sequence[str] | None, model: str
) -> dict[str, Any]:
    """The request that has one turn of an answer rated, as FastChat's single-answer grading does.

    Args:
        templates: The judge's prompts.
        entry: An answer as an evaluation keeps it.
        turn: 0 or 1.
        reference: The reference answer's turns, which math, reasoning and coding questions need.
        model: The judge.
    """
    questions, answers = entry["turns"], entry["outputs"]
    template = templates["single" + ("-math" if reference else "") + "-v1" + ("-multi-turn" if turn else "")]
    words = {"question": questions[0], "answer": answers[0]}
    for place in range(turn + 1):
        words |= {f"question_{place + 1}": questions[place], f"answer_{place + 1}": answers[place]}
        words |= {f"ref_answer_{place + 1}": reference[place]} if reference else {}
    messages = [
        {"role": "system", "content": template["system_prompt"]},
        {"role": "user", "content": template["prompt_template"].format(**words)},
    ]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 2048}


def judge_answers(
    entries: Sequence[dict[str, Any]],
    data: Path,
    model: str,
    ask: Ask,
    log: Path,
    *,
    num_tries: int = 3,
    wait_s: float = 1.0,
) -> list[dict[str, Any]]:
    """Have every turn rated from 1 to 10; what the log holds already is not asked again.

    Args:
        entries: Answers of an evaluation; those of other tasks than `mt_bench` are passed over.
        data: The data folder.
        model: Name of the judge.
        ask: Sends a request.
        log: JSON Lines of judgements, appended to.
        num_tries: Times that a judge is asked who is silent or gives no rating.
        wait_s: Pause before it is asked again; it doubles each time.

    Returns:
        The judgements; `rating` is None, and `problem` says why, where none could be had.
    """
    templates = read_templates(data)
    references = _references(data)
    known = {found["request"]: found for found in read_lines(log)} if log.exists() else {}
    judgements = []
    for entry in entries:
        if entry["task"] != "mt_bench":
            continue
        needs = entry["group"] in _NEEDS_REFERENCE
        reference = references.get(entry["item"]) if needs else None
        for turn in range(len(entry["outputs"])):
            request = build_request(templates, entry, turn, reference, model)
            digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
            found = known.get(digest)
            if found is None or found["rating"] is None:
                found = {"request": digest, "model": model} | _rate(ask, request, num_tries, wait_s)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                known[digest] = found
            facts = {"item": entry["item"], "contender": entry["contender"], "seed": entry["seed"], "turn": turn + 1}
            judgements.append(found | facts)
    return judgements


def parse_rating(text: str) -> float | None:
    """The rating that a judgement gives, 1 to 10, else None."""
    found = _RATING.search(text)
    rating = float(found.group(1) or found.group(2)) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def _rate(ask: Ask, request: dict[str, Any], num_tries: int, wait_s: float) -> dict[str, Any]:
    problem, text = "", ""
    for place in range(num_tries):
        if place:
            time.sleep(wait_s * 2 ** (place - 1))
        try:
            text = ask(request)
        except JudgeError as error:
            problem = str(error)
            continue
        rating = parse_rating(text)
        if rating is not None:
            return {"rating": rating, "judgement": text, "problem": ""}
        problem = "no rating in the judgement"
    return {"rating": None, "judgement": text, "problem": problem}


def _references(data: Path) -> dict[str, list[str]]:
    path = data / "mt_bench" / "reference_gpt-4.jsonl"
    if not path.is_file():
        return {}
    entries = read_json_lines(path, {"question_id": int, "choices": list})
    return {str(entry["question_id"]): entry["choices"][0]["turns"] for entry in entries}
