"""Data sets from a folder: JSON and JSON Lines, packed or not."""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtad.errors import DataError


def find_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that the folder has.

    Args:
        folder: The data folder that the user named.
        names: Paths inside it, the usual one first.

    Raises:
        DataError: The folder is not there, or none of the files is.
    """
    if not folder.is_dir():
        raise DataError(f"data folder {folder} is not there; name the folder that holds the data sets with --data")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"data folder {folder} lacks {' or '.join(names)}; complete it, or leave the task out")


def read_text(path: Path) -> str:
    """The text of a file, unpacked where its name ends in `.gz`.

    Raises:
        DataError: The file cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not whole ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; name another data folder") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; fetch it again") from error


def read_json_lines(path: Path, required: Mapping[str, type]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file.

    Args:
        path: The file; empty lines are passed over.
        required: Keys that every object must have, with the type of their values.

    Raises:
        DataError: The file holds nothing, or a line is no such object; the line is named.
    """
    records = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}); fetch the file again") from error
            records.append(_checked(record, required, f"{path}, line {number}"))
    if not records:
        raise DataError(f"{path} is empty; fetch it again")
    return records


def read_json_array(path: Path, required: Mapping[str, type]) -> list[dict[str, Any]]:
    """The objects of a file that holds one JSON array; otherwise as `read_json_lines`."""
    try:
        records = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} holds no array of objects; fetch it again")
    return [_checked(record, required, f"{path}, entry {index}") for index, record in enumerate(records, start=1)]


def _checked(record: Any, required: Mapping[str, type], where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object, got {str(record)[:40]!r}; fetch the file again")
    for key, kind in required.items():
        if not isinstance(record.get(key), kind):
            raise DataError(
                f"{where}: {key} must be {kind.__name__}, got {str(record.get(key))[:40]!r}; fetch the file again"
            )
    return record
