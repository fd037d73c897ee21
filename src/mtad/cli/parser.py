"""Flags made from config fields, and errors in one sentence."""

import argparse
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from mtad.config import (
    EvaluationOptions,
    GenerationOptions,
    ModelOptions,
    Setting,
    read_config_file,
    replace_settings,
    setting_fields,
)
from mtad.errors import ConfigError

_METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME", tuple: "TEXT"}
_MODEL_FLAGS = ("target", "draft", "adapter")
_LARGEST_SHOWN_BOUND = 1e6
_TABLES: dict[str, type] = {"models": ModelOptions, "decoding": GenerationOptions}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one sentence and keeps line breaks in examples."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print one sentence and leave with status 2."""
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """Report words that no flag and no argument took, and leave with status 2."""
        word = extra[0].partition("=")[0]
        if not word.startswith("-"):
            self.error(f"got the extra words {' '.join(extra)!r}; put a prompt of several words into quotes")
        close = get_close_matches(word, self._option_string_actions, n=1)
        self.error(f"unknown flag {word}" + "".join(f"; did you mean {flag}" for flag in close))


def add_settings(parser: argparse.ArgumentParser, config: type, title: str) -> None:
    """One flag per setting of a config class, named after the field."""
    group = parser.add_argument_group(title)
    for item in setting_fields(config):
        add_setting(group, item)


def add_setting(group: argparse._ActionsContainer, item: Setting, *, may_repeat: bool = False) -> None:
    """The flag of one setting; it is absent from the parsed options when it was not given.

    Args:
        group: Where the flag goes.
        item: The setting.
        may_repeat: Collect the values of all times that the flag was given in a list.
    """
    flag = "--" + item.name.replace("_", "-")
    if item.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_describe(item))
        return
    group.add_argument(
        flag,
        action="append" if item.type is tuple or may_repeat else "store",
        type=_reader(item.type),
        default=argparse.SUPPRESS,
        metavar="MODEL" if item.name in _MODEL_FLAGS else _METAVARS[item.type],
        help=_describe(item),
    )


def read_settings(options: argparse.Namespace) -> tuple[ModelOptions, GenerationOptions]:
    """Model and decoding settings: flag over file over profile over default.

    Raises:
        ConfigError: A setting is unknown or out of bounds.
    """
    models, generation = read_tables(options, {})
    return models, generation


def read_tables(options: argparse.Namespace, more: dict[str, type]) -> tuple[Any, ...]:
    """Model and decoding settings, and those of a command of its own: flag over file over profile over default.

    Args:
        options: Parsed flags.
        more: Further config classes by name. With some, a file may keep settings in tables of these names, and in
            [models] and [decoding].

    Raises:
        ConfigError: A setting is unknown or out of bounds.
    """
    tables = _TABLES | more
    from_file = {} if options.profile is None else _read_profile(options.profile)
    from_file |= {} if options.config is None else _read_checked(options.config, tables, has_tables=bool(more))
    merged = from_file | vars(options)
    return tuple(replace_settings(config(), _named(merged, config), "flags") for config in tables.values())


def add_common(parser: argparse.ArgumentParser, *, takes_profile: bool = True) -> None:
    """Flags that every decoding command has.

    Args:
        parser: Gets the flags.
        takes_profile: False leaves `--profile` to the command, which then reads no calibrated settings.
    """
    parser.set_defaults(profile=None)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings from a TOML or JSON file; flags win")
    if takes_profile:
        parser.add_argument("--profile", type=Path, metavar="FILE", help="settings that `mtad calibrate` has found")
    parser.add_argument("--system", metavar="TEXT", help="system message in front of the conversation")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        metavar="WHEN",
        help="drafted tokens in colour: auto, always or never (default: auto, on a terminal unless NO_COLOR is set)",
    )
    add_settings(parser, ModelOptions, "models")
    add_settings(parser, GenerationOptions, "decoding")


def add_template_choice(parser: argparse.ArgumentParser) -> None:
    """`--chat` and `--raw`; neither leaves `is_chat` None, which means: where the tokenizer has a template."""
    template = parser.add_mutually_exclusive_group()
    template.add_argument(
        "--chat",
        dest="is_chat",
        action="store_true",
        default=None,
        help="wrap the prompt in the chat template (default: where there is one)",
    )
    template.add_argument("--raw", dest="is_chat", action="store_false", default=None, help="continue the bare text")


def _read_profile(path: Path) -> dict[str, Any]:
    """The settings of a profile, each within its own bounds."""
    settings = read_config_file(path).get("settings")
    if not isinstance(settings, dict):
        raise ConfigError(f"profile {path} holds no table [settings]; make one with mtad calibrate")
    return _check_values(settings, f"profile {path}", _TABLES)


def _read_checked(path: Path, tables: dict[str, type], *, has_tables: bool) -> dict[str, Any]:
    """The settings of a file, each within its own bounds; what must fit together is checked after the merge.

    They stand side by side, or with `has_tables` also in tables.
    """
    found = read_config_file(path)
    values: dict[str, Any] = {}
    for name in [name for name in tables if has_tables and isinstance(found.get(name), dict)]:
        inside = {key.replace("-", "_"): value for key, value in found.pop(name).items()}
        values |= _check_values(inside, f"table [{name}] of config file {path}", {name: tables[name]})
    return values | _check_values(found, f"config file {path}", tables)


def _check_values(found: dict[str, Any], source: str, tables: dict[str, type]) -> dict[str, Any]:
    settings = {item.name: item for config in tables.values() for item in setting_fields(config)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    for name, value in values.items():
        if name not in settings:
            close = get_close_matches(name, settings, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known settings are {', '.join(settings)}"
            raise ConfigError(f"unknown setting {name!r} in {source}; {hint}")
        try:
            settings[name].check(value)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
    return values


def _named(values: dict[str, Any], config: type) -> dict[str, Any]:
    return {item.name: values[item.name] for item in setting_fields(config) if item.name in values}


def _reader(kind: type) -> Callable[[str], Any]:
    """Reads a flag's value; what is no number stays text, which the setting's own check refuses in its own words."""
    if kind not in (int, float):
        return str

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


def _describe(item: Setting) -> str:
    parts = [item.help]
    if item.choices:
        parts.append(", ".join(item.choices))
    elif bounds := _bounds(item):
        parts.append(bounds)
    default = "" if item.default in (None, (), False) else f" (default: {item.default})"
    return (": ".join(parts) if item.choices else "; ".join(parts)).replace("%", "%%") + default


def _bounds(item: Setting) -> str:
    """The bounds in few words; empty where they say nothing."""
    shows_maximum = item.maximum is not None and item.maximum < _LARGEST_SHOWN_BOUND
    if item.minimum is not None and shows_maximum:
        return f"{item.minimum:g} to {item.maximum:g}"
    parts = [
        f"at least {item.minimum:g}" if item.minimum else "",
        f"above {item.above:g}" if item.above is not None else "",
        f"at most {item.maximum:g}" if shows_maximum else "",
    ]
    return ", ".join(part for part in parts if part)


def read_evaluation(options: argparse.Namespace) -> EvaluationOptions:
    """The settings of the evaluation that were given as flags.

    Raises:
        ConfigError: One is out of its bounds.
    """
    given = {
        item.name: getattr(options, item.name) for item in setting_fields(EvaluationOptions) if item.name in options
    }
    return replace_settings(EvaluationOptions(), given, "flags")
