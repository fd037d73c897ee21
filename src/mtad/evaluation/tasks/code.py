"""HumanEval and MBPP: generated functions pass or fail their tests, in the sandbox."""

import re
from collections.abc import Sequence
from pathlib import Path

from mtad.errors import DataError
from mtad.evaluation.files import find_file, read_json_lines
from mtad.evaluation.items import Item, Score, Task
from mtad.evaluation.sandbox import run_program

_HUMANEVAL = {"task_id": str, "prompt": str, "entry_point": str, "test": str}
_MBPP = {"task_id": int, "text": str, "code": str, "test_list": list}
_MBPP_EXAMPLES = (2, 3, 4)
_MBPP_TEST_SPLIT = range(11, 511)
_FENCE = re.compile(r"```(?:python)?\s*\n(.*?)(?:```|$)", re.DOTALL)


def load_humaneval(data: Path, shots: int) -> list[Item]:
    """The problems of HumanEval, as functions to be completed."""
    path = find_file(data, ["humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl"])
    return [
        Item(
            item_id=entry["task_id"],
            turns=(entry["prompt"],),
            is_chat=False,
            max_new_tokens=384,
            stop=("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n```"),
            reference={"entry_point": entry["entry_point"], "test": entry["test"]},
        )
        for entry in read_json_lines(path, _HUMANEVAL)
    ]


def score_humaneval(item: Item, answers: Sequence[str]) -> Score:
    """1 where the completed function passes the problem's tests."""
    check = f"{item.reference['test']}\ncheck({item.reference['entry_point']})\n"
    return _run(f"{item.turns[0]}{answers[0]}\n\n{check}")


def load_mbpp(data: Path, shots: int) -> list[Item]:
    """The 500 problems of MBPP's test split, after worked examples of its prompt split."""
    path = find_file(data, ["mbpp/mbpp.jsonl"])
    entries = {entry["task_id"]: entry for entry in read_json_lines(path, _MBPP)}
    lacking = [number for number in _MBPP_EXAMPLES[:shots] if number not in entries]
    if lacking:
        raise DataError(f"{path} lacks problem {lacking[0]}, which the prompt shows; fetch it again")
    examples = [
        f"{_mbpp_question(entries[number])}{entries[number]['code'].strip()}\n[DONE]\n\n"
        for number in _MBPP_EXAMPLES[:shots]
    ]
    return [
        Item(
            item_id=str(number),
            turns=("".join(examples).replace("\r\n", "\n") + _mbpp_question(entry),),
            is_chat=False,
            max_new_tokens=256,
            stop=("[DONE]",),
            reference={"tests": [entry.get("test_setup_code", ""), *entry["test_list"]]},
        )
        for number, entry in entries.items()
        if number in _MBPP_TEST_SPLIT
    ]


def score_mbpp(item: Item, answers: Sequence[str]) -> Score:
    """1 where the answer passes the problem's asserts."""
    fenced = _FENCE.search(answers[0])
    code = fenced.group(1) if fenced else answers[0]
    return _run("\n".join([code, *item.reference["tests"]]) + "\n")


def _mbpp_question(entry: dict[str, object]) -> str:
    tests = "\n".join(entry["test_list"])  # type: ignore[arg-type]
    return (
        f"You are an expert Python programmer, and here is your task: {entry['text']} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _run(program: str) -> Score:
    outcome = run_program(program)
    return Score(float(outcome.is_passed), {"problem": outcome.problem, "isolation": outcome.isolation})


HUMANEVAL = Task(name="humaneval", metric="pass@1", load=load_humaneval, score=score_humaneval, runs_code=True)
MBPP = Task(name="mbpp", metric="pass@1", load=load_mbpp, score=score_mbpp, shots=3, max_shots=3, runs_code=True)
