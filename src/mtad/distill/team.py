"""Several processes, one a device, that work on one run; started by `accelerate launch`."""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtad.errors import MtadError

_Found = TypeVar("_Found")


class Team:
    """One process on its own. The first of several leads: it alone writes files.

    Attributes:
        rank: This process, from 0.
        size: Processes in all.
        device: Where this process computes; None leaves it to the settings.
    """

    rank = 0
    size = 1
    device: str | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows figures."""
        return self.rank == 0

    def lead(self, work: Callable[[], _Found]) -> _Found:
        """Do something in the leading process and give its result, or its error, to all."""
        return work()

    def gather(self, item: _Found) -> list[_Found]:
        """What every process has, by rank."""
        return [item]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes."""

    def leave(self) -> None:
        """Part; nothing is shared any more."""


class SeveralProcesses(Team):
    """Processes that `accelerate launch` or `torchrun` started."""

    def __init__(self) -> None:
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.size = int(state.process_index), int(state.num_processes)
        self.device = str(state.device)

    def lead(self, work: Callable[[], _Found]) -> _Found:
        """See `Team.lead`."""
        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = work()
            except MtadError as error:
                box[1] = error
        torch.distributed.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        found: _Found = box[0]
        return found

    def gather(self, item: _Found) -> list[_Found]:
        """See `Team.gather`."""
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, item)
        return found

    def add(self, tensors: Iterable[Tensor]) -> None:
        """See `Team.add`; tensors of one dtype travel together."""
        waiting: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            waiting.setdefault(tensor.dtype, []).append(tensor)
        for group in waiting.values():
            # NCCL adds up what lies on its own device alone.
            flat = torch.cat([tensor.flatten() for tensor in group]).to(self.device)
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def leave(self) -> None:
        """See `Team.leave`."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def find_team() -> Team:
    """The processes that this one was started with."""
    return SeveralProcesses() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Team()
