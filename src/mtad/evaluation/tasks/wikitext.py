"""WikiText-2: passages to be gone on with; what counts is the perplexity of the continuation."""

from pathlib import Path

from mtad.errors import DataError
from mtad.evaluation.files import find_file, read_text
from mtad.evaluation.items import Item, Task, no_score

_PROMPT_WORDS = 64
_PASSAGE_WORDS = 100


def load_wikitext(data: Path, shots: int) -> list[Item]:
    """The first words of every long paragraph of the test text.

    Raises:
        DataError: The text has no paragraph that is long enough.
    """
    path = find_file(data, ["wikitext-2/test.txt", "wikitext-2/wiki.test.raw", "wikitext-2/wiki.test.tokens"])
    passages = [line.split() for line in read_text(path).split("\n")]
    prompts = [" ".join(words[:_PROMPT_WORDS]) for words in passages if len(words) >= _PASSAGE_WORDS]
    if not prompts:
        raise DataError(f"{path} has no paragraph of {_PASSAGE_WORDS} words; fetch it again")
    return [
        Item(item_id=f"{number:04d}", turns=(prompt,), is_chat=False, max_new_tokens=128)
        for number, prompt in enumerate(prompts, start=1)
    ]


WIKITEXT = Task(name="wikitext", metric="", load=load_wikitext, score=no_score)
