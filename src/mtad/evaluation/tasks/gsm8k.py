"""GSM8K: school arithmetic with worked examples, judged by the last number."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from mtad.errors import DataError
from mtad.evaluation.files import find_file, read_json_lines
from mtad.evaluation.items import Item, Score, Task

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FINAL = re.compile(r"(?:####|answer is:?)\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
EXAMPLES = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
        "been 21 - 15 = 6. The answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39. The answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. "
        "The answer is 8.",
    ),
)
"""The first of the worked examples of Wei et al., 2022, that are usual for this task."""


def extract_number(text: str) -> Decimal | None:
    """The number that a text gives as its answer, else its last number, else None."""
    found = _FINAL.findall(text) or _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def load_gsm8k(data: Path, shots: int) -> list[Item]:
    """The test questions behind the worked examples.

    Raises:
        DataError: The file is missing, or an answer in it has no number.
    """
    path = find_file(data, ["gsm8k/test.jsonl"])
    opening = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in EXAMPLES[:shots])
    items = []
    for number, entry in enumerate(read_json_lines(path, {"question": str, "answer": str}), start=1):
        answer = extract_number(entry["answer"])
        if answer is None:
            raise DataError(f"{path}, line {number}: the answer has no number; fetch the file again")
        items.append(
            Item(
                item_id=f"{number:04d}",
                turns=(f"{opening}Q: {entry['question']}\nA:",),
                is_chat=False,
                max_new_tokens=256,
                stop=("\nQ:",),
                reference={"answer": str(answer)},
            )
        )
    return items


def score_gsm8k(item: Item, answers: Sequence[str]) -> Score:
    """1 where the answer's number is the reference's."""
    number = extract_number(answers[0])
    is_right = number is not None and number == Decimal(item.reference["answer"])
    return Score(
        float(is_right), {"found": None if number is None else str(number), "expected": item.reference["answer"]}
    )


GSM8K = Task(
    name="gsm8k",
    metric="exact match",
    load=load_gsm8k,
    score=score_gsm8k,
    shots=len(EXAMPLES),
    max_shots=len(EXAMPLES),
)
