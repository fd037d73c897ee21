"""What decoders that take turns share."""

from dataclasses import dataclass, field
from time import perf_counter

from mtad.decoding.draft_guard import Clock
from mtad.models.graphs import Capture, CudaGraphCapture


@dataclass(frozen=True, slots=True)
class Machine:
    """How iterations are recorded on CUDA, and timed."""

    capture: Capture = field(default_factory=CudaGraphCapture)
    clock: Clock = perf_counter
