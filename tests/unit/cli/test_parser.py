"""Every setting has a flag; flags win over files, files over defaults; mistakes are one sentence."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import RunCommand, only_sentence

from mtad.cli import chat, generate, main
from mtad.cli.main import build_parser
from mtad.cli.parser import read_settings
from mtad.config import GenerationOptions, ModelOptions, Setting, setting_fields
from mtad.errors import ConfigError

SETTINGS = [(config, item) for config in (ModelOptions, GenerationOptions) for item in setting_fields(config)]
SPECIAL_VALUES: dict[str, Any] = {
    "strict": ("code", "a,b"),
    "method": "speculative",
    "drafter": "chain",
    "verifier": "token_rejection",
    "branching": "3,2",
    "logit_bias": ("3:1", "4:-inf"),
}


def parse(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(["generate", *arguments])


def settings(*arguments: str) -> tuple[ModelOptions, GenerationOptions]:
    return read_settings(parse(*arguments))


def other_value(item: Setting) -> Any:
    """A legal value that is not the default."""
    if item.name in SPECIAL_VALUES:
        return SPECIAL_VALUES[item.name]
    if item.choices:
        return next(choice for choice in item.choices if choice != item.default)
    return {int: 3, float: 0.25, str: "other", bool: True, tuple: ("one", "two")}[item.type]


def as_flags(item: Setting, value: Any) -> list[str]:
    flag = "--" + item.name.replace("_", "-")
    if item.type is bool:
        return [flag]
    values = value if item.type is tuple else [value]
    return [word for each in values for word in (flag, str(each))]


def write(folder: Path, content: Any) -> str:
    path = folder / "settings.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("config", "item"), SETTINGS, ids=lambda value: getattr(value, "name", ""))
def test_every_flag_reaches_its_field(config: type, item: Setting) -> None:
    value = other_value(item)
    found = settings(*as_flags(item, value))
    own = found[0] if config is ModelOptions else found[1]
    assert getattr(own, item.name) == value
    untouched = found[1] if config is ModelOptions else found[0]
    assert untouched == type(untouched)()


@pytest.mark.parametrize(("config", "item"), SETTINGS, ids=lambda value: getattr(value, "name", ""))
def test_every_setting_can_come_from_a_file(config: type, item: Setting, tmp_path: Path) -> None:
    found = settings("--config", write(tmp_path, {item.name: other_value(item)}))
    own = found[0] if config is ModelOptions else found[1]
    assert getattr(own, item.name) == other_value(item)


def test_no_flags_give_the_defaults() -> None:
    assert settings() == (ModelOptions(), GenerationOptions())


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('gamma = 6\nthreshold = 0.9\nbeam-width = 2\ntarget = "a"\nstop = ["x"]\n', encoding="utf-8")
    models, generation = settings("--config", str(path), "--gamma", "3", "--target", "b")
    assert (models.target, models.device) == ("b", "auto")
    assert (generation.gamma, generation.threshold, generation.beam_width, generation.seed) == (3, 0.9, 2, None)
    assert generation.stop == ("x",)


def test_only_the_merged_settings_must_fit_together(tmp_path: Path) -> None:
    path = write(tmp_path, {"gamma": 32})
    with pytest.raises(ConfigError, match="64"):
        settings("--config", path)
    assert settings("--config", path, "--beam-width", "2")[1].gamma == 32


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"gama": 3}, "unknown setting 'gama' in config file {path}; did you mean gamma?"),
        ({"decoding": {"gamma": 3}}, "unknown setting 'decoding' in config file {path}; known settings are target, "),
        ({"gamma": "3"}, "config file {path}: gamma must be a whole number >= 1 and <= 64, got '3'"),
        ({"threshold": 0}, "config file {path}: threshold must be a number > 0 and <= 1, got 0"),
        ({"gamma": True}, "config file {path}: gamma must be a whole number >= 1 and <= 64, got True"),
        ([1], "config file {path} must hold a table of settings, got list"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(content: Any, expected: str, tmp_path: Path, command: RunCommand) -> None:
    path = write(tmp_path, content)
    only_sentence(command("generate", "hi", "--config", path), expected.format(path=path))


def test_a_missing_or_malformed_file_is_one_sentence(tmp_path: Path, command: RunCommand) -> None:
    only_sentence(command("generate", "hi", "--config", str(tmp_path / "no.toml")), "cannot be read", "no.toml")
    (tmp_path / "bad.toml").write_text("gamma = = 3", encoding="utf-8")
    only_sentence(command("generate", "hi", "--config", str(tmp_path / "bad.toml")), "malformed", "line 1")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--beam-width", "0"], "beam_width must be a whole number >= 1 and <= 64, got 0"),
        (["--gamma", "0"], "gamma must be a whole number >= 1 and <= 64, got 0"),
        (["--gamma", "four"], "gamma must be a whole number >= 1 and <= 64, got 'four'"),
        (["--gamma", "2.5"], "gamma must be a whole number >= 1 and <= 64, got '2.5'"),
        (["--gamma", "13", "--beam-width", "5"], "gamma * beam_width must be <= 64 tree nodes, got 13 * 5 = 65"),
        (["--threshold", "0"], "threshold must be a number > 0 and <= 1, got 0"),
        (["--threshold", "1.1"], "threshold must be a number > 0 and <= 1, got 1.1"),
        (["--threshold", "nan"], "threshold must be a number > 0 and <= 1, got nan"),
        (["--temperature", "-1"], "temperature must be a number >= 0, got -1"),
        (["--temperature=-0.5"], "temperature must be a number >= 0, got -0.5"),
        (["--top-p", "0"], "top_p must be a number > 0 and <= 1, got 0"),
        (["--top-p", "1.5"], "top_p must be a number > 0 and <= 1, got 1.5"),
        (["--top-k", "-1"], "top_k must be a whole number >= 0, got -1"),
        (["--max-new-tokens", "0"], "max_new_tokens must be a whole number >= 1, got 0"),
        (["--batch-size", "0"], "batch_size must be a whole number >= 1, got 0"),
        (["--batch-size", "few"], "batch_size must be a whole number >= 1, got 'few'"),
        (["--method", "magic"], "method must be one of mmtad, mtad, "),
        (["--draw", "magic"], "draw must be one of top, gumbel, sample, got 'magic'"),
        (["--dtype", "int8"], "dtype must be one of auto, bfloat16, float16, float32, float64, got 'int8'"),
        (["--stop", ""], "stop must not hold empty text"),
        (["--seed", "-1"], "seed must be a whole number >= 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_out_of_bounds_is_one_sentence(flags: list[str], expected: str, command: RunCommand) -> None:
    only_sentence(command("generate", "hi", *flags), expected)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["generate", "--beam-with", "3", "hi"], ["unknown flag --beam-with; did you mean --beam-width"]),
        (["generate", "--gama=3", "hi"], ["unknown flag --gama; did you mean --gamma"]),
        (["generate", "--zzz", "hi"], ["mtad generate: unknown flag --zzz; see mtad generate --help"]),
        (["chat", "--jsn"], ["mtad chat: unknown flag --jsn"]),
        (["generate", "why", "is", "it"], ["got the extra words 'is it'; put a prompt of several words into quotes"]),
        (["generate", "--gamma"], ["argument --gamma: expected one argument"]),
        (["generate", "--chat", "--raw", "hi"], ["not allowed with"]),
        (["generate", "--color", "sometimes", "hi"], ["--color", "'sometimes'", "never"]),
        (["write"], ["invalid choice: 'write'", "generate"]),
        ([], ["COMMAND", "see mtad --help"]),
    ],
    ids=" ".join,
)
def test_an_unusable_command_line_is_one_sentence(arguments: list[str], parts: list[str], command: RunCommand) -> None:
    only_sentence(command(*arguments), *parts)


@pytest.mark.parametrize("arguments", [[], ["generate"], ["chat"]], ids=["mtad", "generate", "chat"])
def test_help_has_examples_and_fits_a_terminal(arguments: list[str], command: RunCommand) -> None:
    outcome = command(*arguments, "--help")
    assert outcome.status == 0
    assert "examples:\n  mtad " in outcome.out
    assert [line for line in outcome.out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_help_names_every_setting_with_its_default(name: str, command: RunCommand) -> None:
    text = " ".join(command(name, "--help").out.split())
    for _, item in SETTINGS:
        assert "--" + item.name.replace("_", "-") in text
        if item.default not in (None, (), False):
            assert f"(default: {item.default})" in text
        for choice in item.choices or ():
            assert choice in text


@pytest.mark.parametrize("epilog", [main.EXAMPLES, generate.EXAMPLES, chat.EXAMPLES], ids=["mtad", "generate", "chat"])
def test_the_examples_of_the_help_are_legal(epilog: str) -> None:
    commands = [line.partition("mtad ")[2].partition(" > ")[0] for line in epilog.splitlines() if "mtad " in line]
    assert commands
    for words in commands:
        read_settings(build_parser().parse_args(shlex.split(words)))
