"""Compiles what lies between the calls of the models with torch's inductor, one program for every shape."""

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from mtad.models.step_parts import Shapes, Spec, put_together, shapes_of, take_apart
from mtad.structures.between_calls import taken_by, traced

Program = Callable[..., Sequence[Tensor]]

_FAILURES = (
    RuntimeError,
    OSError,
    ImportError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    subprocess.SubprocessError,
)
"""What a program that does not work is known to raise in its first run."""
_SPLIT_SOFTMAX = r"\s*Online softmax is disabled"
"""What some versions of inductor say of every wide vocabulary on CUDA, where they split the sums instead."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A function of tensors of given shapes."""

    key: Hashable
    function: Callable[..., Any]
    spec: Spec
    shapes: Shapes


@dataclass(slots=True)
class _Made:
    """A program, or None where there is none and the function runs as it is, and what its results are made of."""

    program: Program | None
    spec: Spec = ()
    has_run: bool = False


class StepCompiler:
    """Computes marked functions by compiled programs, which it keeps for all decoders.

    A program holds for one function, its numbers and flags, and the shapes of its tensors. Where the compiler
    fails, a note on stderr says so once, and the function runs as it is.

    Args:
        in_background: Compile in a thread of its own and let functions run as they are meanwhile; what is finished
            is used from the next `publish` on. Else every function waits for its program.

    Attributes:
        generation: Changes whenever `publish` brought programs.
        failed: Functions that could not be compiled, by name.
    """

    def __init__(self, *, in_background: bool = False) -> None:
        self.generation = 0
        self._in_background = in_background
        self._made: dict[Hashable, _Made] = {}
        self._asked: set[Hashable] = set()
        self._wanted: SimpleQueue[_Wanted] = SimpleQueue()
        self._finished: SimpleQueue[tuple[Hashable, _Made]] = SimpleQueue()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self.failed: set[str] = set()

    @property
    def num_programs(self) -> int:
        """Programs in use."""
        return sum(made.program is not None for made in self._made.values())

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """See `CallTaker.call`."""
        tensors: list[Tensor] = []
        spec = take_apart(arguments, tensors)
        shapes = shapes_of(tensors)
        key = (function, spec, shapes)
        made = self._made.get(key)
        if made is None and function.__name__ not in self.failed:
            made = self._ask(_Wanted(key, function, spec, shapes))
        if made is not None and made.program is not None:
            if made.has_run:
                return put_together(made.spec, iter(made.program(*tensors)))
            # What a compiler puts off until the first run may fail then.
            try:
                results = made.program(*tensors)
            except _FAILURES as error:
                made.program = None
                self._note_failure(function, error)
            else:
                made.has_run = True
                return put_together(made.spec, iter(results))
        with taken_by(None):
            return function(*arguments)

    def publish(self) -> bool:
        """Use what the thread has finished, once nothing is left to do; returns whether that is anything.

        Programs come into use together, so that an iteration is captured anew once.
        """
        if not self._in_background or self._finished.qsize() < len(self._asked):
            return False
        brought = [self._finished.get() for _ in range(self._finished.qsize())]
        self._made.update(brought)
        self._asked.clear()
        self.generation += bool(brought)
        return bool(brought)

    def wait(self) -> None:
        """Wait until the thread has nothing left to do."""
        with self._change:
            self._change.wait_for(lambda: self._finished.qsize() >= len(self._asked))

    def _ask(self, wanted: _Wanted) -> _Made | None:
        if not self._in_background:
            self._made[wanted.key] = made = self._make(wanted)
            return made
        if wanted.key not in self._asked:
            self._asked.add(wanted.key)
            self._wanted.put(wanted)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="mtad-compiler", daemon=True)
                self._thread.start()
        return None

    def _work(self) -> None:
        while True:
            wanted = self._wanted.get()
            made = self._make(wanted)
            with self._change:
                self._finished.put((wanted.key, made))
                self._change.notify_all()

    def _make(self, wanted: _Wanted) -> _Made:
        try:
            return compile_function(wanted.function, wanted.spec, wanted.shapes)
        # Whatever a compiler raises, the function runs as it is; a thread that died of it would be waited for in vain.
        except Exception as error:  # noqa: BLE001
            self._note_failure(wanted.function, error)
            return _Made(None)

    def _note_failure(self, function: Callable[..., Any], error: Exception) -> None:
        if not self.failed:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            text = f"mtad: {function.__name__} runs as it is, for it could not be compiled: {reason[0]}"
            print(text, file=sys.stderr, flush=True)
        self.failed.add(function.__name__)


def compile_function(function: Callable[..., Any], spec: Spec, shapes: Shapes) -> _Made:
    """A program that does what a function does.

    Args:
        function: A marked one.
        spec: Its arguments without their tensors.
        shapes: How their tensors lie in memory.
    """
    from torch import _inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    found: list[Spec] = []

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        arguments = put_together(spec, iter(tensors))
        found.append(take_apart(function(*arguments), results))
        return tuple(results)

    warnings.filterwarnings("ignore", _SPLIT_SOFTMAX, UserWarning)
    # Programs are made outside of inference mode, whose tensors tracing cannot do with.
    with torch.inference_mode(False), torch.no_grad():
        examples: list[Any] = [
            torch.empty_strided(*place, dtype=dtype, device=device) for *place, dtype, device in shapes
        ]
        with traced():
            graph = make_fx(flat, tracing_mode="fake")(*examples)
        program: Program = _inductor.compile(graph, examples)
    return _Made(program, found[-1])
