"""The same call over and over: captured once, replayed, its result read one call later."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mtad.structures.rows import RowControls

_MAX_SHAPES = 32

Call = Callable[[], Tensor]
Capture = Callable[[Call], Call]
"""Records what a call does on the device, without doing it; the result does the same again to the same memory."""


class CudaGraphCapture:
    """Records calls as CUDA graphs that share their scratch memory, so only one may run at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Call) -> Call:
        """Record one call.

        Args:
            call: Reads and writes memory that stays where it is, and asks the device nothing.

        Raises:
            RuntimeError: The call does what a graph cannot hold, or its memory is not there.
        """
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = call()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def settle(old: Tensor | None, new: Tensor) -> Tensor:
    """`new` at the address of `old`, where that has its shape, so that captured calls find it there again."""
    if old is None or old.shape != new.shape or old.dtype != new.dtype or old.device != new.device:
        return new
    return old.copy_(new)


def settle_rows(old: RowControls | None, new: RowControls) -> RowControls:
    """`new` at the addresses of `old`, as `settle` does it for one tensor."""
    if old is None:
        return new
    tensors = {name: value for name, value in _fields(new).items() if isinstance(value, Tensor)}
    settled: dict[str, Any] = {name: settle(getattr(old, name), value) for name, value in tensors.items()}
    return replace(new, **settled)


def places_of(tensors: Iterable[Tensor]) -> tuple[Hashable, ...]:
    """Where tensors lie and how; equal places are the same memory to a captured call."""
    return tuple((tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors)


def places_of_rows(rows: RowControls) -> tuple[Hashable, ...]:
    """Where the rows' tensors lie, and what the host knows of them."""
    values = _fields(rows).values()
    tensors = [value for value in values if isinstance(value, Tensor)]
    return (*places_of(tensors), *(value for value in values if not isinstance(value, Tensor)))


def _fields(rows: RowControls) -> dict[str, Any]:
    return {item.name: getattr(rows, item.name) for item in fields(rows)}


@dataclass(slots=True)
class _Flight:
    """A result on its way to the host, the mode of its call, and when that began, if that is to be known."""

    host: Tensor
    landed: torch.cuda.Event | None
    mode: Hashable
    began: torch.cuda.Event | None = None

    @classmethod
    def start(cls, result: Tensor, mode: Hashable, began: torch.cuda.Event | None) -> "_Flight":
        # A copy that does not block goes to pinned memory.
        host = result.to("cpu", non_blocking=True, copy=True)
        return cls(host, _stamp(result.device), mode, began)

    def land(self) -> Tensor:
        if self.landed is not None:
            self.landed.synchronize()
        return self.host

    @property
    def seconds(self) -> float | None:
        """Seconds of the device, once the result has landed; None where they were not measured."""
        if self.began is None or self.landed is None:
            return None
        return self.began.elapsed_time(self.landed) / 1000  # type: ignore[no-any-return]


def _stamp(device: torch.device) -> torch.cuda.Event | None:
    """The moment at which the device gets here; None on the CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


@dataclass(slots=True)
class _Shape:
    """The calls of one shape: where they find the active rows, what these are, and how to replay them."""

    active: Tensor
    said: list[bool]
    replay: Call | None = None


class ReplayLoop:
    """Runs one call over and over for a batch, the host one call behind the device.

    The first call of a shape runs as it is, which warms up whatever compiles or allocates; the second one is captured.
    A call that cannot be captured goes on running as it is. What was captured is replayed again in later batches whose
    state lies in the same places.

    Args:
        call: Takes the active rows, `[batch]` bool, and returns what the host reads, leading with the batch. Its state
            lives at fixed addresses between two `restart` or `select_rows`.
        layout: Where that state lies and what else a captured call depends on.
        capture: How calls are captured.
        device: Where they run.

    Attributes:
        num_captures: Shapes captured so far.
        refusal: Why the call cannot be captured, once it has been tried in vain.
        landed_mode: Mode of the call whose result was returned last.
        landed_s: Seconds that it took on a CUDA device; None elsewhere, and for calls that warm up or are captured.
    """

    def __init__(
        self,
        call: Callable[[Tensor], Tensor],
        layout: Callable[[], Hashable],
        capture: Capture,
        device: torch.device,
    ) -> None:
        self._call = call
        self._layout = layout
        self._shapes: dict[Hashable, _Shape] = {}
        self._capture = capture
        self._device = device
        self.num_captures = 0
        self.refusal: RuntimeError | None = None
        self.landed_mode: Any = None
        self.landed_s: float | None = None
        self._mode: Hashable = None
        self._began: torch.cuda.Event | None = None
        self._flight: _Flight | None = None
        self._shape: _Shape | None = None

    @property
    def mode_under_way(self) -> Any:
        """Mode of the call whose result has not been returned yet; None where there is none."""
        return None if self._flight is None else self._flight.mode

    def restart(self) -> None:
        """Begin another batch; forgets what is under way."""
        self._flight, self._shape = None, None

    def select_rows(self, rows: Sequence[int]) -> None:
        """Go on with the named rows, whose state has moved; what is under way is thinned to them."""
        if self._flight is not None:
            self._flight = replace(self._flight, host=self._flight.land()[list(rows)])
        self._shape = None

    def run(self, active: list[bool], mode: Hashable = None) -> Tensor:
        """Start another call and return the result of the one before it, on the host.

        Args:
            active: Rows to work on; the result may be older than what is said here.
            mode: What else the call does differently from now on; a part of `layout`.
        """
        if mode != self._mode:
            self._mode, self._shape = mode, None
        landing = self._flight or self._start(active)
        self._flight = self._start(active)
        return self._land(landing)

    def land(self) -> Tensor | None:
        """The result that is under way, on the host, without starting another call; None for none."""
        landing, self._flight = self._flight, None
        return None if landing is None else self._land(landing)

    def _start(self, active: list[bool]) -> _Flight:
        self._began = None
        return _Flight.start(self._do(active), self._mode, self._began)

    def _land(self, flight: _Flight) -> Tensor:
        host = flight.land()
        self.landed_mode, self.landed_s = flight.mode, flight.seconds
        return host

    def _do(self, active: list[bool]) -> Tensor:
        shape = self._shape or self._shapes.get(self._layout())
        if shape is None:
            self._shape = _Shape(torch.tensor(active, device=self._device), active)
            return self._call(self._shape.active)
        self._shape = shape
        if active != shape.said:
            shape.active.copy_(torch.tensor(active))
            shape.said = active
        if shape.replay is None and self.refusal is None:
            self._try_capture(shape)
        self._began = _stamp(self._device)
        return self._call(shape.active) if shape.replay is None else shape.replay()

    def _try_capture(self, shape: _Shape) -> None:
        try:
            shape.replay = self._capture(lambda: self._call(shape.active))
        except RuntimeError as error:
            # Nothing has run on the device, so the call can be made as it is.
            self.refusal = error
            return
        self.num_captures += 1
        # Asked now: the caches are there since the first call at the latest.
        self._shapes[self._layout()] = shape
        if len(self._shapes) > _MAX_SHAPES:
            del self._shapes[next(iter(self._shapes))]
