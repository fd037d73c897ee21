"""Profiles: settings that a calibration has found, with what they were measured on."""

import json
from pathlib import Path
from typing import Any

from mtad.errors import ConfigError


def write_profile(path: Path, settings: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write a TOML file with the tables `settings` and `measured`.

    Args:
        path: The file; replaced where it is there.
        settings: Values by name; None is left out.
        measured: Texts, numbers and flags by name.

    Raises:
        ConfigError: The file cannot be written.
    """
    lines = ["# Made by mtad calibrate; use it with --profile.", "", "[settings]"]
    lines += [f"{name} = {_value(value)}" for name, value in settings.items() if value is not None]
    lines += ["", "[measured]"]
    lines += [f"{name} = {_value(value)}" for name, value in measured.items() if value is not None]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"profile {path} cannot be written: {error.strerror}; name another file") from error


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
