"""What decoders that take turns share."""

from dataclasses import dataclass, field
from time import perf_counter

from mtad.decoding.draft_guard import Clock
from mtad.models.graphs import Capture, CudaGraphCapture
from mtad.models.step_compiler import StepCompiler


@dataclass(frozen=True, slots=True)
class Machine:
    """How iterations are recorded on CUDA, timed, and compiled: before they run, or in the background."""

    capture: Capture = field(default_factory=CudaGraphCapture)
    clock: Clock = perf_counter
    compiler: StepCompiler = field(default_factory=StepCompiler)
    background_compiler: StepCompiler = field(default_factory=lambda: StepCompiler(in_background=True))

    def compiler_for(self, choice: str) -> StepCompiler | None:
        """What `GenerationOptions.compile` asks for; `auto` is resolved before this point."""
        return {"on": self.compiler, "background": self.background_compiler}.get(choice)
