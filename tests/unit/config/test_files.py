"""Settings from files, good and bad."""

from pathlib import Path

import pytest

from mtad.config import GenerationOptions, read_config_file, replace_settings
from mtad.errors import ConfigError


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_config_file(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("settings.toml", 'method = "mtad"\nbeam-width = 2\nthreshold = 0.25\nstop = ["a", "b"]\nignore_eos = true\n'),
        (
            "settings.json",
            '{"method": "mtad", "beam-width": 2, "threshold": 0.25, "stop": ["a", "b"], "ignore_eos": true}',
        ),
    ],
)
def test_both_formats_give_the_same_settings(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    settings = read_config_file(path)
    assert settings == {
        "method": "mtad",
        "beam_width": 2,
        "threshold": 0.25,
        "stop": ["a", "b"],
        "ignore_eos": True,
    }
    options = replace_settings(GenerationOptions(), settings, name)
    assert (options.method, options.beam_width, options.stop) == ("mtad", 2, ("a", "b"))


def test_text_may_be_any_language(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('stop = ["\N{EURO SIGN}"]', encoding="utf-8")
    assert read_config_file(path) == {"stop": ["\N{EURO SIGN}"]}


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.touch()
    assert read_config_file(path) == {}


@pytest.mark.parametrize(
    ("name", "text", "detail"),
    [
        ("settings.toml", "gamma = ", "Invalid value"),
        ("settings.toml", "gamma = 1\ngamma = 2", "Cannot overwrite a value"),
        ("settings.json", '{"gamma": 1', "Expecting"),
        ("settings.json", "gamma = 1", "Expecting value"),
        ("settings.json", "", "Expecting value"),
        ("settings", '{"gamma": 1}', "Invalid"),
    ],
)
def test_a_malformed_file_is_named_with_its_fault(tmp_path: Path, name: str, text: str, detail: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    message = error_of(path)
    assert message.startswith(f"config file {path} is malformed: ")
    assert detail in message


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ('"gamma"', "str"), ("null", "NoneType"), ("3", "int")])
def test_a_file_must_hold_a_table(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text, encoding="utf-8")
    assert error_of(path) == f"config file {path} must hold a table of settings, got {kind}"


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes('stop = ["\N{POUND SIGN}"]'.encode("latin-1"))
    assert error_of(path) == f"config file {path} is not UTF-8 (byte 9); save it as UTF-8"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert error_of(missing) == (
        f"config file {missing} cannot be read (No such file or directory); name a TOML or JSON file"
    )
    assert error_of(tmp_path) == f"config file {tmp_path} cannot be read (Is a directory); name a TOML or JSON file"


def test_values_of_a_file_are_checked_like_flags(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"threshold": NaN}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^threshold must be a number > 0 and <= 1, got nan$"):
        replace_settings(GenerationOptions(), read_config_file(path), str(path))
