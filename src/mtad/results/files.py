"""JSON files that a kill cannot leave half written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtad.errors import ConfigError


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace the file in one step.

    Raises:
        ConfigError: The folder is not there or not writable.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"record {path} cannot be written: {error.strerror}; name another file") from error


def read_json(path: Path) -> dict[str, Any]:
    """The document of a file.

    Raises:
        ConfigError: The file cannot be read or holds no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"record {path} cannot be read: {error.strerror}; name another file") from error
    except ValueError as error:
        raise ConfigError(f"record {path} is not JSON ({error}); name another file") from error
    if not isinstance(document, dict):
        raise ConfigError(f"record {path} holds no JSON object; name another file")
    return document


def begin_record(
    path: Path, fresh: dict[str, Any], go_on: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The record that lies there, to go on with, else the fresh one; written at once, so that the file is writable.

    Args:
        path: Where the record is, or will be.
        fresh: The record of a run that begins.
        go_on: Gives the record to go on with for the found one and the fresh one, or refuses the found one.
    """
    record = go_on(read_json(path), fresh) if path.exists() else fresh
    write_json(path, record)
    return record
