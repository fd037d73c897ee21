"""Dataclass fields that know their help text and bounds: one field is one flag is one help text."""

import math
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, TypeVar

from mtad.errors import ConfigError

_METADATA_KEY = "mtad_setting"
_Config = TypeVar("_Config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Description of one setting.

    Attributes:
        name: Field name; the flag is the same with dashes.
        help: One line for `--help`.
        type: Python type a value must have: `int`, `float`, `str`, `bool` or `tuple` (of strings).
        default: Value when nothing is said; None means that it is resolved later.
        minimum: Smallest allowed number.
        maximum: Largest allowed number.
        above: Number that the value must exceed.
        choices: Allowed values.
    """

    name: str = ""
    help: str
    type: type
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] | None = None

    def check(self, value: Any) -> None:
        """Raise unless `value` has the right type and lies within the bounds.

        Raises:
            ConfigError: What was got and what was expected.
        """
        if value is None and self.default is None:
            return
        accepted = (int, float) if self.type is float else (self.type,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.type is not bool):
            raise ConfigError(f"{self.name} must be {self.expected()}, got {value!r}")
        if isinstance(value, tuple) and not all(isinstance(part, str) for part in value):
            raise ConfigError(f"{self.name} must be {self.expected()}, got {value!r}")
        if self.choices is not None and value not in self.choices:
            raise ConfigError(f"{self.name} must be one of {', '.join(self.choices)}, got {value!r}")
        if isinstance(value, int | float) and not self._is_within(value):
            raise ConfigError(f"{self.name} must be {self.expected()}, got {value}")

    def expected(self) -> str:
        """The type and bounds in words."""
        kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list of text"}
        bounds = [
            f">= {self.minimum:g}" if self.minimum is not None else "",
            f"> {self.above:g}" if self.above is not None else "",
            f"<= {self.maximum:g}" if self.maximum is not None else "",
        ]
        return " ".join([kind[self.type], " and ".join(bound for bound in bounds if bound)]).strip()

    def _is_within(self, value: float) -> bool:
        return not (
            math.isnan(value)
            or (self.minimum is not None and value < self.minimum)
            or (self.maximum is not None and value > self.maximum)
            or (self.above is not None and value <= self.above)
        )


def setting(kind: type, default: Any, help_text: str, **bounds: Any) -> Any:
    """A dataclass field of type `kind` with its help text and bounds; see `Setting`."""
    return field(
        default=default, metadata={_METADATA_KEY: Setting(help=help_text, type=kind, default=default, **bounds)}
    )


def setting_fields(config: Any) -> list[Setting]:
    """The settings of a config class or object, in order of definition."""
    described = [item for item in fields(config) if _METADATA_KEY in item.metadata]
    return [replace(item.metadata[_METADATA_KEY], name=item.name) for item in described]


def check_settings(config: Any) -> None:
    """Check every setting of a config object; called by its `__post_init__`.

    Raises:
        ConfigError: The first setting that is out of its bounds.
    """
    for item in setting_fields(config):
        item.check(getattr(config, item.name))


def replace_settings(config: _Config, changes: dict[str, Any], source: str) -> _Config:
    """A copy of `config` with some settings changed.

    Args:
        config: A config dataclass object.
        changes: New values by field name.
        source: Where the changes come from, for the error message.

    Raises:
        ConfigError: An unknown key, or a value out of its bounds.
    """
    known = [item.name for item in fields(config) if item.default is not MISSING]  # type: ignore[arg-type]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r} in {source}; known settings are {', '.join(known)}")
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    return replace(config, **changes)  # type: ignore[type-var]
