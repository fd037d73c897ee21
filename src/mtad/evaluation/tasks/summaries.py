"""XSum and CNN/DailyMail: summaries, scored by ROUGE."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mtad.errors import ConfigError
from mtad.evaluation.files import find_file, read_json_lines
from mtad.evaluation.items import Item, Score, Task

_MEASURES = ("rouge1", "rouge2", "rougeL")


def load_summaries(data: Path, shots: int, *, names: Sequence[str], summary: str, ask: str, length: int) -> list[Item]:
    """The articles of a file, each in one user message.

    Args:
        data: The data folder.
        shots: Not used.
        names: Files that it may be in.
        summary: Key of the reference.
        ask: What the user wants of the article.
        length: Longest answer in tokens.
    """
    entries = read_json_lines(find_file(data, names), {"article": str, summary: str})
    return [
        Item(
            item_id=f"{number:04d}",
            turns=(f"{entry['article']}\n\n{ask}",),
            max_new_tokens=length,
            reference={"summary": entry[summary]},
        )
        for number, entry in enumerate(entries, start=1)
    ]


def score_summary(item: Item, answers: Sequence[str]) -> Score:
    """F-measure of ROUGE-L, with ROUGE-1 and ROUGE-2 beside it; words are stemmed.

    Raises:
        ConfigError: `rouge-score` is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ConfigError(f"ROUGE needs {error.name}; install the extra with pip install 'mtad[evaluation]'") from error
    found = RougeScorer(list(_MEASURES), use_stemmer=True).score(item.reference["summary"], answers[0])
    figures = {name: found[name].fmeasure for name in _MEASURES}
    return Score(figures["rougeL"], figures | {"reference": item.reference["summary"]})


XSUM = Task(
    name="xsum",
    metric="ROUGE-L",
    load=partial(
        load_summaries,
        names=("xsum/test_500.jsonl", "xsum/test.jsonl"),
        summary="summary",
        ask="Summarize the article above in one sentence.",
        length=96,
    ),
    score=score_summary,
)
CNN_DM = Task(
    name="cnn_dm",
    metric="ROUGE-L",
    load=partial(
        load_summaries,
        names=("cnn_dm/test.jsonl",),
        summary="highlights",
        ask="Summarize the article above in three sentences.",
        length=192,
    ),
    score=score_summary,
)
