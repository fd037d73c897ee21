"""Runs generated Python in a child that can do little harm."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CHILD = Path(__file__).with_name("sandbox_child.py")
_POLL_S = 0.02
_ERROR_CHARACTERS = 300

Isolation = Literal["namespaces", "audit_hook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What a program may use.

    Attributes:
        wall_s: Wall seconds, after which all of its processes are killed.
        cpu_s: CPU seconds of one process.
        memory_bytes: Address space of one process.
        file_bytes: Size of one file, and of all files in its folder.
        num_processes: Processes and threads at once.
    """

    wall_s: float = 10.0
    cpu_s: int = 8
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    num_processes: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOutcome:
    """How a program ended.

    Attributes:
        is_passed: It ran to its end without an exception.
        problem: Empty, or why not, in one line.
        isolation: `namespaces`: no network, no other process in sight, every file system read-only but its own folder.
            `audit_hook`: Python itself refuses sockets, other processes and signals, which determined code can evade.
    """

    is_passed: bool
    problem: str
    isolation: Isolation


def run_program(source: str, limits: SandboxLimits | None = None) -> ProgramOutcome:
    """Run a Python program in a new process group, in an empty folder, without network, and kill what is left of it.

    It has passed when the last line has run; leaving early, with whatever status, is no pass.

    Args:
        source: The whole program.
        limits: What it may use.
    """
    limits = limits or SandboxLimits()
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="mtad-", ignore_cleanup_errors=True) as name:
        read_end, write_end = os.pipe()
        try:
            child = _start(Path(name), write_end, limits)
        finally:
            os.close(write_end)
        with os.fdopen(read_end, "rb") as report:
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(f"{nonce}\n{source}".encode("utf-8", "replace"))
            reason = _wait(child, Path(name), limits)
            os.set_blocking(report.fileno(), False)
            said = (report.read() or b"").decode("utf-8", "replace")
    return _outcome(said, nonce, reason, child.returncode)


def _start(folder: Path, report: int, limits: SandboxLimits) -> "subprocess.Popen[bytes]":
    numbers = (limits.cpu_s, limits.memory_bytes, limits.file_bytes, limits.num_processes)
    return subprocess.Popen(
        [sys.executable, "-I", "-B", str(_CHILD), str(report), *map(str, numbers)],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(report,),
        start_new_session=True,
    )


def _wait(child: "subprocess.Popen[bytes]", folder: Path, limits: SandboxLimits) -> str:
    """Wait for the end or bring it about; returns why it was brought about."""
    deadline = time.monotonic() + limits.wall_s
    reason = ""
    while child.poll() is None and not reason:
        time.sleep(_POLL_S)
        if time.monotonic() > deadline:
            reason = f"ran longer than {limits.wall_s:g} s"
        elif _folder_bytes(folder) > limits.file_bytes:
            reason = f"wrote more than {limits.file_bytes} bytes"
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return reason


def _folder_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
            except OSError:
                continue
    return total


def _outcome(said: str, nonce: str, reason: str, status: int) -> ProgramOutcome:
    lines = said.split("\n")
    isolation: Isolation = "namespaces" if lines[0] == "namespaces" else "audit_hook"
    if f"passed {nonce}" in lines and not reason:
        return ProgramOutcome(is_passed=True, problem="", isolation=isolation)
    failed = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    problem = reason or (failed[0] if failed else f"ended early with status {status}")
    return ProgramOutcome(is_passed=False, problem=problem[:_ERROR_CHARACTERS], isolation=isolation)
