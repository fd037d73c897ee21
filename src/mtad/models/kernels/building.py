"""The C++ kernels, compiled for this machine's processor when they are first wanted."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from mtad.models.pairs.folders import cache_root

SOURCES = Path(__file__).parent / "cpu"
_COMPILERS = ("g++", "c++", "clang++")
_TIMEOUT = 300


@cache
def cpu_kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; a note on stderr says why, once."""
    try:
        return load_kernels(cache_root() / "kernels")
    except KernelBuildError as error:
        print(f"mtad: int8 weights are slower than full ones here: {error}", file=sys.stderr, flush=True)
        return None


class KernelBuildError(Exception):
    """Why the kernels are not there."""


def load_kernels(folder: Path, *, architecture: str = "native") -> ctypes.CDLL:
    """Compile the kernels unless that was done before, and load them.

    The file's name tells sources, flags and processor apart, so that machines can share a folder.

    Args:
        folder: Where the library is kept.
        architecture: Which instructions the compiler may use, as it calls them.

    Raises:
        KernelBuildError: No compiler, or it failed.
    """
    flags = ["-O3", f"-march={architecture}", "-std=c++17", "-shared", "-fPIC", "-w", *_parallel_flags()]
    path = folder / f"mtad-{_fingerprint(flags)}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(flags, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelBuildError(f"{path} cannot be made or loaded ({error})") from error


def _parallel_flags() -> list[str]:
    # Apple's compiler knows no OpenMP of its own; one thread computes there.
    return [] if sys.platform == "darwin" else ["-fopenmp"]


def _fingerprint(flags: list[str]) -> str:
    content = hashlib.sha256("\0".join([*flags, platform.machine(), _processor()]).encode())
    for source in sorted(SOURCES.iterdir()):
        content.update(source.read_bytes())
    return content.hexdigest()[:16]


def _processor() -> str:
    """What tells processors with other instructions apart, where Linux says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(flags: list[str], path: Path) -> None:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise KernelBuildError(f"no C++ compiler ({', '.join(_COMPILERS)}) is installed; install one")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        command = [*compiler.split(), *flags, "-o", str(built), str(SOURCES / "kernels.cpp")]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            raise KernelBuildError(f"{compiler} failed: {output.strip().splitlines()[0]}") from error
        built.replace(path)
