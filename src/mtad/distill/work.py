"""The folder in which an unfinished run keeps what it has done."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mtad.errors import CapacityError, ConfigError, DistillError
from mtad.results.files import read_json, write_json

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOLD = re.compile(r"os error (\d+)")
WORK_NAME = ".work"


class WorkFolder:
    """`.work` in the output folder: the settings of the run, and one JSON file per stage.

    Args:
        output: The folder that is to hold the draft.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / WORK_NAME

    def open(self, settings: Mapping[str, Any]) -> bool:
        """Begin, or go on with a run of the same settings; one that has done nothing yet is replaced.

        Args:
            settings: What must be alike, ready for JSON.

        Returns:
            Whether there was something to go on with.

        Raises:
            DistillError: The folder holds a run with other settings, or cannot be written.
        """
        found = self.read("settings")
        differing = [name for name in settings if found.get(name) != settings[name]]
        if not found or (differing and not self._has_begun()):
            with disk_errors(self.path):
                if found:
                    shutil.rmtree(self.path)
                self.path.mkdir(parents=True, exist_ok=True)
            self.write("settings", dict(settings))
            return False
        if differing:
            changes = ", ".join(f"{name} was {found.get(name)!r} and is {settings[name]!r}" for name in differing)
            raise DistillError(
                f"{self.path.parent} holds a run with other settings ({changes}); give the same ones, or another --out"
            )
        return True

    def _has_begun(self) -> bool:
        """Whether there is anything beside the settings and the choice of sizes and batches."""
        idle = {"settings.json", "sizes.json", "batches.json"}
        return any(file.is_dir() or file.stat().st_size for file in self.path.iterdir() if file.name not in idle)

    def read(self, stage: str) -> dict[str, Any]:
        """What a stage wrote last; empty where it has not begun."""
        file = self.path / f"{stage}.json"
        return read_json(file) if file.exists() else {}

    def write(self, stage: str, document: dict[str, Any]) -> None:
        """Replace a stage's file in one step."""
        with disk_errors(self.path):
            write_json(self.path / f"{stage}.json", document)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence, whichever library met it.

    Raises:
        DistillError: The block could not write.
    """
    try:
        yield
    except (OSError, RuntimeError, ConfigError, SafetensorError) as error:
        number = _error_number(error)
        if number is None:
            raise
        advice = "free some space" if number in _FULL else "check the folder"
        raise DistillError(
            f"{path} cannot be written ({os.strerror(number)}); {advice} and run the same command again, "
            "it goes on from what is there"
        ) from error


def _error_number(error: BaseException | None) -> int | None:
    """The system's number of what went wrong, from an error, the text of a library's, or an error behind it."""
    if error is None:
        return None
    if isinstance(error, OSError):
        return error.errno
    told = _TOLD.search(str(error))
    return int(told[1]) if told else _error_number(error.__cause__ or error.__context__)


@contextmanager
def training_memory_errors() -> Iterator[None]:
    """Turn exhausted memory into one sentence.

    Raises:
        CapacityError: The block ran out of memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory() from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise _out_of_memory() from error
        raise


def sync(file: Any) -> None:
    """Bring what was written to an open file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def _out_of_memory() -> CapacityError:
    return CapacityError(
        "out of memory while distilling; lower --batch-tokens (with more --accumulation), --sampling-batch or the "
        "number of --size, and run again"
    )
