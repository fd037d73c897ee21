"""The loop for rows that come and go."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.generation import Request
from mtad.decoding.outcome import RowOutcome
from mtad.models.graphs import settle_rows
from mtad.structures.constraints import UNCONSTRAINED
from mtad.structures.rows import RowControls, RowSettings


class RollingDecoder(AssistedDecoder):
    """`AssistedDecoder` over neighbouring rows of caches that others fill and move.

    What an iteration keeps lies at the same addresses for the same number of places, so that captured iterations go on
    being replayed while rows come and go. Places without a row pad a batch to such a number.

    Args:
        *parts: Those of `AssistedDecoder`.

    Attributes:
        seated: The requests whose rows take part, in the order of the rows.
        first_row: Cache row of the first of them.
        num_places: Rows of the iterations, padding included.
    """

    seated: Sequence[Request] = ()
    first_row: int = 0
    num_places: int = 0

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._homes: dict[tuple[str, int], Tensor] = {}
        self._control_homes: dict[int, RowControls] = {}

    def arrange(self, requests: Sequence[Request], first_row: int, num_places: int) -> None:
        """Go on with these rows; those that were not there begin behind their cached prompts.

        Args:
            requests: At least one, `num_places` at most; told apart by `Request.row`.
            first_row: Cache row of the first; the others follow.
            num_places: Rows of the iterations from now on.
        """
        with torch.inference_mode():
            known = {request.row: index for index, request in enumerate(self.seated)}
            joining = [request for request in requests if request.row not in known]
            num_pads = num_places - len(requests)
            places = {request.row: len(self.pending) + index for index, request in enumerate(joining)}
            pads = range(len(self.pending) + len(joining), len(self.pending) + len(joining) + num_pads)
            order = [*(({**known, **places})[request.row] for request in requests), *pads]
            # A padding row has the settings of a real one, lest it widen the filters of all.
            padding = replace(requests[0].settings, constraints=UNCONSTRAINED)
            self._join([request.settings for request in joining] + [padding] * num_pads, joining, order)
            self._set_controls([request.settings for request in requests] + [padding] * num_pads)
            tickets = [*(request.row for request in requests), *[-1] * num_pads]
            self.row_ids = torch.tensor(tickets, device=self.target.device)
        self.longest = max([self.longest, *(len(request.prompt) - 1 for request in joining)])
        self.seated, self.first_row, self.num_places = list(requests), first_row, num_places
        if self.loop is not None:
            self.loop.restart()

    def take_turn(self) -> None:
        """Turn all caches to the own rows; they may be shared with others."""
        for runner in self.states:
            runner.use_rows(self.first_row, self.num_places, self.longest)

    @torch.inference_mode()
    def land(self) -> list[RowOutcome | None] | None:
        """What an iteration that was started ahead brings; None where there is none."""
        under_way = None if self.loop is None else self.loop.land()
        if under_way is None:
            return None
        return self._read_landed(under_way, [place < len(self.seated) for place in range(self.num_places)])

    def _join(self, settings: list[RowSettings], joining: Sequence[Request], order: list[int]) -> None:
        """Take new rows behind the old ones and put all into order; `settings` are those of new rows and padding."""
        prompts = [list(request.prompt) for request in joining]
        prompts += [[0]] * (len(settings) - len(prompts))
        for policy in self.policies:
            policy.add_rows(len(prompts))
            policy.select_rows(order)
        self._lag.add_rows(prompts)
        self._lag.select_rows(order)
        constraints = [setting.constraints for setting in settings]
        self.constraints.add_rows(prompts, constraints, self.target.vocab_size, self.target.device)
        self.constraints.select_rows(order)
        self.pending = self._settle("pending", [prompt[-1] for prompt in prompts], order)
        self.previous = self._settle("previous", [prompt[-2:][0] for prompt in prompts], order)

    def _settle(self, name: str, new: list[int], order: list[int]) -> Tensor:
        """The old rows and some new ones in order, at the place that so many rows always have."""
        device = self.target.device
        old: Tensor = getattr(self, name)
        tokens = torch.cat([old, torch.tensor(new, dtype=torch.int64, device=device)])[order]
        key = (name, len(order))
        self._homes[key] = self._homes[key].copy_(tokens) if key in self._homes else tokens
        return self._homes[key]

    def _set_controls(self, settings: list[RowSettings]) -> None:
        self._want_top(settings)
        rows = RowControls.from_settings(settings, one_hot_at_zero=self._one_hot_at_zero, device=self.target.device)
        home = self._control_homes.get(len(settings))
        self.rows = self._control_homes[len(settings)] = settle_rows(home, rows)
