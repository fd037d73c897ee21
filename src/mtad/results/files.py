"""JSON files that a kill cannot leave half written."""

import json
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
