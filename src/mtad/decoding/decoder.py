"""What every decoder shares: prompts go in, the newest token stays pending, rows can leave."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from mtad.decoding.outcome import PhaseTimes, RowOutcome
from mtad.models.graphs import settle, settle_rows
from mtad.models.row_state import RowState
from mtad.models.runner import ModelRunner
from mtad.structures.rows import RowControls, RowSettings

LEAST_SHARED = 16
"""Tokens that prompts must have in common before one row computes them for others."""


def shared_beginning(prompts: Sequence[list[int]]) -> int:
    """Leading tokens that all prompts have in common, their last ones left out; 0 where it is not worth a call."""
    if len(prompts) < 2:
        return 0
    # The smallest and the largest prompt differ where any two do.
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    count = next((place for place in range(most) if first[place] != last[place]), most)
    return count if count >= LEAST_SHARED else 0


class Decoder(ABC):
    """Decodes a batch of rows, one iteration a call; knows nothing of text, limits or stop strings.

    Args:
        target: The large model.
        extra_slots: Cache slots of the target behind the committed tokens.
        one_hot_at_zero: Whether temperature 0 means a one-hot target; see `RowControls.from_settings`.

    Attributes:
        gamma: Most drafted tokens an iteration can keep.
        times: Seconds spent on the batch so far.
        pending: Last committed token, `[batch]` int64.
        previous: The token before it, `[batch]` int64.
        row_ids: Place of each row among the prompts of `prefill`, `[batch]` int64.
        num_shared: Leading prompt tokens that were computed in the first row alone and copied to the others.
    """

    gamma: int = 0

    def __init__(self, target: ModelRunner, *, extra_slots: int, one_hot_at_zero: bool) -> None:
        self.target = target
        self.times = PhaseTimes()
        self.num_shared = 0
        self._runners: list[tuple[RowState, int]] = [(target, extra_slots)]
        self._one_hot_at_zero = one_hot_at_zero
        self.pending = self.previous = torch.zeros(0, dtype=torch.int64, device=target.device)
        self._first_rows: RowControls | None = None

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]], settings: list[RowSettings], max_new_tokens: list[int]) -> None:
        """Start a batch.

        Args:
            prompts: Token ids of each row, none empty.
            settings: Settings of each row.
            max_new_tokens: Tokens to make room for, per row.

        Raises:
            CapacityError: The caches do not fit the memory or the model's window.
        """
        self.times = PhaseTimes()
        device = self.target.device
        longest = max(len(prompt) for prompt in prompts)
        room = longest + max(max_new_tokens)
        token_ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self.num_shared = shared_beginning(prompts)
        for runner, extra_slots in self._runners:
            runner.allocate(len(prompts), room + extra_slots + 2)
            runner.prefill(token_ids, lengths, self.num_shared)
        self.pending = settle(self.pending, token_ids.gather(1, lengths.unsqueeze(1)).squeeze(1))
        last_but_one = token_ids.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        self.previous = settle(self.previous, last_but_one)
        self.row_ids = torch.arange(len(prompts), device=device)
        rows = RowControls.from_settings(settings, one_hot_at_zero=self._one_hot_at_zero, device=device)
        self.rows = self._first_rows = settle_rows(self._first_rows, rows)

    @property
    def states(self) -> list[RowState]:
        """What is kept of every row: the models' caches, the text where the drafter reads it."""
        return [runner for runner, _ in self._runners]

    @property
    def cache_bytes(self) -> int:
        """Memory that all models hold for the batch."""
        return sum(runner.cache_bytes for runner, _ in self._runners)

    @property
    def is_captured(self) -> bool:
        """Whether iterations of the same number of rows can be captured and replayed."""
        return False

    @abstractmethod
    def step(self, active: list[bool]) -> list[RowOutcome | None]:
        """Run one iteration; None for rows that are not active."""

    @torch.inference_mode()
    def select_rows(self, rows: list[int]) -> None:
        """Go on with the named rows only, renumbered in that order."""
        index = torch.tensor(rows, device=self.target.device)
        for runner, _ in self._runners:
            runner.select_rows(index)
        self.pending, self.previous = self.pending[index], self.previous[index]
        self.rows, self.row_ids = self.rows.select(index), self.row_ids[index]
