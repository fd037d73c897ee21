"""Flags made from config fields, and errors in one sentence."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mtad.config import GenerationOptions, ModelOptions, Setting, read_config_file, replace_settings, setting_fields

_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT", tuple: "TEXT"}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one sentence and keeps line breaks in examples."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print one sentence and leave with status 2."""
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def add_settings(parser: argparse.ArgumentParser, config: type, title: str) -> None:
    """One flag per setting of a config class, named after the field."""
    group = parser.add_argument_group(title)
    for item in setting_fields(config):
        flag = "--" + item.name.replace("_", "-")
        if item.type is bool:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_describe(item)
            )
        else:
            group.add_argument(
                flag,
                action="append" if item.type is tuple else "store",
                type=str if item.type is tuple else item.type,
                default=argparse.SUPPRESS,
                metavar="{" + ",".join(item.choices) + "}" if item.choices else _METAVARS[item.type],
                help=_describe(item),
            )


def read_settings(options: argparse.Namespace) -> tuple[ModelOptions, GenerationOptions]:
    """Model and decoding settings: flag over file over default.

    Raises:
        ConfigError: A setting is unknown or out of bounds.
    """
    models, generation = ModelOptions(), GenerationOptions()
    if options.config is not None:
        source = f"config file {options.config}"
        from_file = read_config_file(options.config)
        model_names = {item.name for item in setting_fields(ModelOptions)}
        for_models = {key: value for key, value in from_file.items() if key in model_names}
        rest = {key: value for key, value in from_file.items() if key not in model_names}
        models = replace_settings(models, for_models, source)
        generation = replace_settings(generation, rest, source)
    given = vars(options)
    return (
        replace_settings(models, _named(given, ModelOptions), "flags"),
        replace_settings(generation, _named(given, GenerationOptions), "flags"),
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that every decoding command has."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings from a TOML or JSON file; flags win")
    parser.add_argument("--system", metavar="TEXT", help="system message in front of the conversation")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="drafted tokens in colour (default: on a terminal, unless NO_COLOR is set)",
    )
    add_settings(parser, ModelOptions, "models")
    add_settings(parser, GenerationOptions, "decoding")


def _named(values: dict[str, Any], config: type) -> dict[str, Any]:
    return {item.name: values[item.name] for item in setting_fields(config) if item.name in values}


def _describe(item: Setting) -> str:
    default = "" if item.default in (None, (), False) else f" (default: {item.default})"
    bounds: Sequence[str] = [item.expected()] if item.type in (int, float) and item.expected().count(" ") > 1 else []
    return (item.help + "".join(f"; {bound}" for bound in bounds) + default).replace("%", "%%")
