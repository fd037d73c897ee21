"""The answers of an evaluation: appended line by line, so that a kill costs at most the batch at hand."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtad.errors import DataError

BatchKey = tuple[str, str, int, int]
"""Task, contender, seed, first item."""


def batch_key(entry: dict[str, Any]) -> BatchKey:
    """The batch that an entry was decoded in."""
    return entry["task"], entry["contender"], entry["seed"], entry["start"]


class ItemLog:
    """A JSON Lines file of answers that knows which batches it holds.

    Args:
        path: The file; made where it is not there.
        batch_length: How many answers a whole batch has. What is not whole is dropped from the file.

    Raises:
        DataError: The file cannot be used, or a line before the last is broken.
    """

    def __init__(self, path: Path, batch_length: Callable[[BatchKey], int]) -> None:
        self._path = path
        found = read_entries(path) if path.exists() else []
        counts = Counter(batch_key(entry) for entry in found)
        self.entries = [entry for entry in found if counts[batch_key(entry)] == batch_length(batch_key(entry))]
        self._batches = {batch_key(entry) for entry in self.entries}
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text("".join(map(_line, self.entries)), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}; name another folder") from error

    def has(self, key: BatchKey) -> bool:
        """Whether a batch is there already."""
        return key in self._batches

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Write a whole batch through to the disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, entries)))
            file.flush()
            os.fsync(file.fileno())
        self.entries += [json.loads(_line(entry)) for entry in entries]
        self._batches |= {batch_key(entry) for entry in entries}


def read_entries(path: Path) -> list[dict[str, Any]]:
    """All answers of a file, as `read_lines` gives them.

    Raises:
        DataError: The file cannot be read, or a line is no answer.
    """
    entries = read_lines(path)
    for number, entry in enumerate(entries, start=1):
        try:
            batch_key(entry)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: no answer ({error}); remove the line, or the file") from error
    return entries


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; a last line that a kill has torn is passed over.

    Raises:
        DataError: The file cannot be read, or another line is broken.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; name another folder") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if line and number < len(lines):
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}); remove the line, or the file") from error
    return entries


def write_parquet(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the answers as one table, nested parts as JSON text.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError("Parquet needs pyarrow; install the extra with pip install 'mtad[evaluation]'") from error
    rows = [
        {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in entry.items()}
        for entry in entries
    ]
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; name another folder") from error


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
