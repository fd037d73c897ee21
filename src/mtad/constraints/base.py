"""What every constraint offers, and all constraints of a batch as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from mtad.constraints.bias import LogitBias
from mtad.constraints.grammar import GrammarConstraint
from mtad.constraints.occurrence import OccurrencePenalty
from mtad.constraints.places import Places
from mtad.constraints.processors import ProcessorConstraint
from mtad.constraints.repetition import RepetitionPenalty
from mtad.structures.constraints import UNCONSTRAINED, RowConstraints


class Constraint(Protocol):
    """Changes logits by the text before them, for every row of a batch.

    Attributes:
        needs_host: Whether it reads tokens from the device, so that the iteration cannot stay there.
        may_forbid: Whether it can set logits to -inf.
    """

    needs_host: bool
    may_forbid: bool

    def apply(self, scores: Tensor, places: Places, active: Sequence[bool]) -> Tensor:
        """Logits under the constraint.

        Args:
            scores: `[batch, places, vocab]`, any float type; not changed.
            places: Where they belong to.
            active: Rows that matter; the others may be left as they are.
        """
        ...

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """Commit the first `counts` of `tokens`, `[batch, longest]` int64, to the active rows, on the device."""
        ...

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """Hear the same tokens on the host, nothing for rows that are not active."""
        ...

    def join(self, other: Any) -> None:
        """Take the rows of another constraint of the same kind behind the own ones."""
        ...

    def select_rows(self, rows: Sequence[int]) -> None:
        """Go on with the named rows only, in that order."""
        ...


_Prompts = Sequence[Sequence[int]]
_Rows = Sequence[RowConstraints]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of constraint: whether a row asks for it, and how it is built for some rows."""

    is_asked: Callable[[RowConstraints], bool]
    build: Callable[[_Prompts, _Rows, int, torch.device], Constraint]


# In the order in which they change the logits.
_KINDS = (
    _Kind(lambda row: row.repetition_penalty != 1, RepetitionPenalty),
    _Kind(
        lambda row: row.presence_penalty != 0 or row.frequency_penalty != 0,
        lambda prompts, rows, size, device: OccurrencePenalty(rows, size, device),
    ),
    _Kind(lambda row: bool(row.logit_bias), lambda prompts, rows, size, device: LogitBias(rows, size, device)),
    _Kind(
        lambda row: bool(row.logits_processors), lambda prompts, rows, size, device: ProcessorConstraint(prompts, rows)
    ),
    _Kind(lambda row: row.grammar is not None, lambda prompts, rows, size, device: GrammarConstraint(rows)),
)


class Constraints:
    """All constraints of a batch; none until `start`, and none where no row asks for any.

    Both models go through one object, so that what was worked out while drafting serves verification too.

    Attributes:
        seconds: Wall seconds spent on the batch, dispatch time only on an asynchronous device.
    """

    def __init__(self) -> None:
        self._kinds: dict[_Kind, Constraint] = {}
        self._rows: list[RowConstraints] = []
        self._active: Sequence[bool] = ()
        self.seconds = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no row of the batch has any."""
        return not self._kinds

    @property
    def _parts(self) -> list[Constraint]:
        return [self._kinds[kind] for kind in _KINDS if kind in self._kinds]

    @property
    def needs_host(self) -> bool:
        """Whether an iteration has to leave the device."""
        return any(part.needs_host for part in self._parts)

    def start(self, prompts: _Prompts, rows: _Rows, vocab_size: int, device: torch.device) -> None:
        """Begin a batch.

        Args:
            prompts: Token ids of each row.
            rows: What each row asks for.
            vocab_size: Width of the logits.
            device: Where the logits are.
        """
        self._kinds, self._rows = {}, []
        self.add_rows(prompts, rows, vocab_size, device)
        self._active = [True] * len(rows)
        self.seconds = 0.0

    def add_rows(self, prompts: _Prompts, rows: _Rows, vocab_size: int, device: torch.device) -> None:
        """Take some more rows behind those that are there; the arguments are those of `start`."""
        for kind in _KINDS:
            if kind not in self._kinds:
                if not any(map(kind.is_asked, rows)):
                    continue
                # The rows that are there do not ask for it, so their text does not matter to it.
                count = len(self._rows)
                self._kinds[kind] = kind.build([[]] * count, [UNCONSTRAINED] * count, vocab_size, device)
            self._kinds[kind].join(kind.build(prompts, rows, vocab_size, device))
        self._rows += rows

    def begin_step(self, active: Sequence[bool]) -> None:
        """Hear which rows the next iteration is for."""
        self._active = active

    def apply(self, logits: Tensor, places: Places) -> tuple[Tensor, Tensor | None]:
        """Logits under all constraints.

        Args:
            logits: `[batch, places, vocab]`, any float type.
            places: Where they belong to.

        Returns:
            The changed logits, and whether nothing may follow a place, `[batch, places]` bool, or
            None where that cannot be. Where nothing may follow, the logits are the unchanged ones.
        """
        parts = self._parts
        if not parts:
            return logits, None
        started = perf_counter()
        scores = logits
        for part in parts:
            scores = part.apply(scores, places, self._active)
        is_dead_end = None
        if any(part.may_forbid for part in parts):
            is_dead_end = scores.amax(-1) == -torch.inf
            # Where the host takes part anyway, a look costs less than a copy of all logits.
            if not self.needs_host or bool(is_dead_end.any()):
                scores = torch.where(is_dead_end.unsqueeze(-1), logits, scores)
        self.seconds += perf_counter() - started
        return scores, is_dead_end

    def append(self, tokens: Tensor, counts: Tensor, active: Tensor) -> None:
        """See `Constraint.append`."""
        for part in self._parts:
            part.append(tokens, counts, active)

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """See `Constraint.note`."""
        started = perf_counter()
        for part in self._parts:
            part.note(tokens)
        self.seconds += perf_counter() - started

    def select_rows(self, rows: Sequence[int]) -> None:
        """See `Constraint.select_rows`."""
        self._rows = [self._rows[row] for row in rows]
        self._kinds = {kind: part for kind, part in self._kinds.items() if any(map(kind.is_asked, self._rows))}
        for part in self._parts:
            part.select_rows(rows)
