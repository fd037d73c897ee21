"""How, on what and with which versions a run was made."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("mtad", "torch", "transformers")


def describe_run() -> dict[str, Any]:
    """Command, commit, machine and versions of this process, ready for JSON.

    `commit` and `is_dirty` are those of the checkout the package lies in, null where it lies in none.
    """
    commit = _git("rev-parse", "HEAD")
    return {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "commit": commit,
        "is_dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "processor": _processor(),
            "cores": _num_cores(),
            "accelerators": _accelerators(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _program() -> str:
    """Name of the running script; `mtad` where it was started as a module."""
    name = Path(sys.argv[0]).name
    return "mtad" if name == "__main__.py" else name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor()


def _accelerators() -> list[str]:
    """Names of the CUDA devices, where this process uses any; torch is asked only where it has been loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def machine_name(run: dict[str, Any]) -> str:
    """What the figures of a run depend on most: its CUDA devices, else its processor; one kind is said once."""
    machine = run["machine"]
    found: list[str] = machine.get("accelerators") or []
    kinds = dict.fromkeys(found)
    names = [name if found.count(name) == 1 else f"{found.count(name)} x {name}" for name in kinds]
    return ", ".join(names) or str(machine["processor"])


def _num_cores() -> int | None:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
