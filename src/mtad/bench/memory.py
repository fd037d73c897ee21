"""The most memory that a process has held."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mtad.errors import ConfigError

_STATUS = Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def peak_memory() -> dict[str, int | None]:
    """Peaks of this process so far.

    Returns:
        `host_bytes`: resident memory, libraries and mapped weights included, None where the system does not tell;
        `device_bytes`: memory that torch held on the CUDA device, None without one.
    """
    found = _PEAK.search(_STATUS.read_text()) if _STATUS.exists() else None
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"host_bytes": None if found is None else 1024 * int(found[1]), "device_bytes": device}


def peak_memory_of(words: Sequence[str]) -> dict[str, int | None]:
    """Peaks of `mtad WORDS --json` in a process of its own.

    Raises:
        ConfigError: The process failed; the message is its own.
    """
    command = [sys.executable, "-m", "mtad", *words, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        reason = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise ConfigError(f"the run that measures memory failed: {reason}")
    document: dict[str, Any] = json.loads(ended.stdout)
    peak: dict[str, int | None] = document["peak_memory"]
    return peak
