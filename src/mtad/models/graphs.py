"""The same call over and over: captured once, replayed, its result read one call later."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], Tensor]
Capture = Callable[[Call], Call]
"""Records what a call does on the device, without doing it; the result does the same again to the same memory."""


def capture_cuda_graph(call: Call) -> Call:
    """Record a call as a CUDA graph.

    Args:
        call: Reads and writes memory that stays where it is, and asks the device nothing.

    Raises:
        RuntimeError: The call does what a graph cannot hold, or its memory is not there.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on using the device meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


@dataclass(slots=True)
class _Flight:
    """A result on its way to the host."""

    host: Tensor
    landed: torch.cuda.Event | None

    @classmethod
    def start(cls, result: Tensor) -> "_Flight":
        # A copy that does not block goes to pinned memory.
        host = result.to("cpu", non_blocking=True, copy=True)
        if not result.is_cuda:
            return cls(host, None)
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record(torch.cuda.current_stream(result.device))
        return cls(host, landed)

    def land(self) -> Tensor:
        if self.landed is not None:
            self.landed.synchronize()
        return self.host


@dataclass(slots=True)
class _Shape:
    """The calls of one shape: where they find the active rows, what these are, and how to replay them."""

    active: Tensor
    said: list[bool]
    replay: Call | None = None


class ReplayLoop:
    """Runs one call over and over for a batch, the host one call behind the device.

    The first call of a shape runs as it is, which warms up whatever compiles or allocates; the second one is captured.
    A call that cannot be captured goes on running as it is.

    Args:
        call: Takes the active rows, `[batch]` bool, and returns what the host reads, leading with the batch. Its state
            lives at fixed addresses between two `restart` or `select_rows`.
        capture: How calls are captured.
        device: Where they run.

    Attributes:
        num_captures: Shapes captured so far.
        refusal: Why the call cannot be captured, once it has been tried in vain.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], capture: Capture, device: torch.device) -> None:
        self._call = call
        self._capture = capture
        self._device = device
        self.num_captures = 0
        self.refusal: RuntimeError | None = None
        self._flight: _Flight | None = None
        self._shape: _Shape | None = None

    def restart(self) -> None:
        """Begin another batch; forgets what was captured and what is under way."""
        self._flight, self._shape = None, None

    def select_rows(self, rows: Sequence[int]) -> None:
        """Go on with the named rows, whose state has moved; what is under way is thinned to them."""
        if self._flight is not None:
            self._flight = _Flight(self._flight.land()[list(rows)], None)
        self._shape = None

    def run(self, active: list[bool]) -> Tensor:
        """Start another call and return the result of the one before it, on the host.

        Args:
            active: Rows to work on; the result may be older than what is said here.
        """
        landing = self._flight or _Flight.start(self._do(active))
        self._flight = _Flight.start(self._do(active))
        return landing.land()

    def _do(self, active: list[bool]) -> Tensor:
        if self._shape is None:
            self._shape = _Shape(torch.tensor(active, device=self._device), active)
            return self._call(self._shape.active)
        shape = self._shape
        if active != shape.said:
            shape.active.copy_(torch.tensor(active))
            shape.said = active
        if shape.replay is None and self.refusal is None:
            shape.replay = self._try_capture(shape.active)
        return self._call(shape.active) if shape.replay is None else shape.replay()

    def _try_capture(self, active: Tensor) -> Call | None:
        try:
            replay = self._capture(lambda: self._call(active))
        except RuntimeError as error:
            # Nothing has run on the device, so the call can be made as it is.
            self.refusal = error
            return None
        self.num_captures += 1
        return replay
