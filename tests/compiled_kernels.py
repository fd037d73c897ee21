"""Triton kernels compiled for a GPU that is not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

HOPPER = 90
needs_compiler = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not there, or interprets its kernels",
)


@contextmanager
def compiled_kernels() -> Iterator[list[str]]:
    """Names of the kernels that are launched inside the block; they are compiled and not run."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    names: list[str] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        # Products are widened for the interpreter alone.
        widens = {"WIDENS": False} if "WIDENS" in kwargs else {}
        kernel = run(self, *args, grid=grid, warmup=True, **(kwargs | widens))
        assert kernel.asm["cubin"]
        names.append(kernel.metadata.name)
        return kernel

    fake = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", HOPPER, 32),
        # Compiled kernels are kept for each device, and no other test has this one.
        get_current_device=lambda: 99,
        get_current_stream=lambda device: 0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", fake)
        yield names
