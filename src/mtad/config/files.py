"""Settings from a TOML or JSON file."""

import json
import tomllib
from pathlib import Path
from typing import Any

from mtad.errors import ConfigError


def read_config_file(path: Path) -> dict[str, Any]:
    """Read settings by name from a `.toml` or `.json` file.

    Raises:
        ConfigError: The file is missing, not UTF-8, malformed, or not a table of settings.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read ({error.strerror}); name a TOML or JSON file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    try:
        settings = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {path} is malformed: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"config file {path} must hold a table of settings, got {type(settings).__name__}")
    return {key.replace("-", "_"): value for key, value in settings.items()}
