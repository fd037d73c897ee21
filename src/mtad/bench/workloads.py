"""What is decoded for a measurement of speed: real questions behind as much real text as the length asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mtad.api import PromptFormat
from mtad.api.prompts import encode_prompt

QUESTIONS = (
    "Explain why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "How do I make a simple tomato soup? Give me the steps.",
    "What is the difference between a virus and a bacterium?",
    "Write a Python function that returns the n-th Fibonacci number, and explain it.",
    "Describe the water cycle to a child.",
    "What should I think about before I adopt a dog?",
    "Summarise the causes of the First World War.",
    "Give me five tips for a job interview.",
    "How does a bicycle stay upright?",
    "Write an email that asks a colleague for help with a report.",
    "What makes bread rise?",
)
PASSAGE = """A river begins in many places at once. Rain that falls on high ground soaks into the soil, runs along the
roots of trees, and comes out again lower down as springs. The springs make brooks, the brooks join, and each valley
adds its own water, its own colour of mud and its own temperature. By the time people give the river a name, it has
already done most of its work: it has carried stones down from the hills, rounded them against each other, sorted them
by weight, and left the heavy ones behind. In the plains it slows down. It begins to wander, cutting into the outer bank
of every bend and building up the inner one, until two bends meet and the river takes the shorter way. The old loop is
left as a lake in the shape of a horseshoe, where reeds grow and fish hide in winter. Towns stand where the river can be
crossed, mills where it falls, harbours where it meets the tide. Floods made the fields along it fertile, and dams now
keep the floods away, so that the fields must be fed by other means. Near the sea the water no longer knows which way to
go. Salt pushes in below, fresh water runs out above, and between the two the finest mud at last sinks to the ground.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedWorkload:
    """Prompts of one length, answers of one length, decoded so many at once.

    Attributes:
        prompt_tokens: Tokens that a prompt has at least; 0 leaves the questions as they are.
        new_tokens: Tokens of every answer; the end-of-text token does not end it.
        batch_size: Prompts decoded at once.
        temperature: Of the sampling; 0 is greedy.
    """

    prompt_tokens: int
    new_tokens: int
    batch_size: int
    temperature: float

    @property
    def label(self) -> str:
        """The workload in a few words."""
        prompt = f"prompts of {self.prompt_tokens} tokens" if self.prompt_tokens else "short questions"
        return f"{prompt}, {self.new_tokens} new tokens, batch {self.batch_size}, temperature {self.temperature:g}"


def build_prompts(tokenizer: Any, workload: SpeedWorkload, repeat: int) -> list[list[int]]:
    """Token ids of the prompts of one repeat, no two alike.

    Args:
        tokenizer: A transformers tokenizer.
        workload: Says how many and how long.
        repeat: Number of the repeat; each has other prompts while they last.
    """
    first = repeat * workload.batch_size
    return [build_prompt(tokenizer, workload.prompt_tokens, first + index) for index in range(workload.batch_size)]


def build_prompt(tokenizer: Any, prompt_tokens: int, number: int) -> list[int]:
    """Token ids of one prompt; see `build_text`."""
    style = PromptFormat()
    text = build_text(lambda text: len(encode_prompt(tokenizer, text, style)), prompt_tokens, number)
    return encode_prompt(tokenizer, text, style)


def build_text(count_tokens: Callable[[str], int], prompt_tokens: int, number: int) -> str:
    """The text of one prompt.

    Args:
        count_tokens: Of a text as a prompt.
        prompt_tokens: Tokens that it has at least; 0 leaves the questions as they are, and counts none.
        number: Another number gives another prompt, for some thousand numbers.
    """
    turn, question = divmod(number, len(QUESTIONS))
    words = PASSAGE.split()
    # A later turn over the questions starts elsewhere in the passage, so that no prompt comes twice.
    words = words[7 * turn % len(words) :] + words[: 7 * turn % len(words)]
    text = QUESTIONS[question] if turn == 0 else f"{' '.join(words[:5])}. {QUESTIONS[question]}"
    count = 0
    while prompt_tokens and (missing := prompt_tokens - count_tokens(text)) > 0:
        count += max(missing // 3, 1)
        passage = " ".join(words[index % len(words)] for index in range(count))
        text = f"{passage}\n\n{QUESTIONS[question]}"
    return text
