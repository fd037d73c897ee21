"""What a row asks of its own text: penalties, biases, processors, a grammar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""Token ids so far, `[1, tokens]` int64, and scores after them, `[1, vocab]`, become new scores; a pure function."""


class GrammarCursor(Protocol):
    """Follows one answer through a grammar."""

    def allowed(self, path: Sequence[int]) -> Tensor | None:
        """Tokens that may follow the committed answer and `path`.

        Returns:
            One bit per token, `[ceil(vocab / 32)]` int32 on the CPU, lowest bit first; None where anything may follow
            because the answer has ended or the path has left the grammar already.
        """
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """Commit tokens; those behind an end are ignored."""
        ...


class Grammar(Protocol):
    """A language that answers are confined to."""

    def cursor(self) -> GrammarCursor:
        """A new cursor at the start of an answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowConstraints:
    """What changes the logits of one row before the warp, in this order.

    Attributes:
        repetition_penalty: Positive logits of tokens that prompt or answer hold are divided by it, others multiplied
            (Keskar et al. 2019); above 0, 1 changes nothing.
        presence_penalty: Subtracted from the logits of tokens that the answer holds.
        frequency_penalty: The same, once for every time that the answer holds them.
        logit_bias: Numbers to add to the logits of single tokens, as (token id, number); -inf forbids the token.
        logits_processors: Called in turn at every place of the text.
        grammar: Confines the answer.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logits_processors: tuple[LogitsProcessor, ...] = ()
    grammar: Grammar | None = None

    def __bool__(self) -> bool:
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.logits_processors
            or self.grammar is not None
        )


UNCONSTRAINED = RowConstraints()
