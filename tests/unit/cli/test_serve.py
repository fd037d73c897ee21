"""The settings of `mtad serve`: flag over file over default, and what is said about mistakes."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import RunCommand, only_sentence

from mtad.cli.main import build_parser
from mtad.cli.parser import read_tables
from mtad.config import ServerOptions, SessionOptions
from mtad.errors import ConfigError

TABLES: dict[str, type] = {"server": ServerOptions, "batch": SessionOptions}


def settings(*words: str) -> tuple[Any, ...]:
    options: argparse.Namespace = build_parser().parse_args(["serve", *words])
    return read_tables(options, TABLES)


def test_a_file_has_tables_or_settings_side_by_side_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(
        'gamma = 2\nport = 1\n[server]\nlog-format = "json"\nrate-limit = 60\ncors-origin = ["*"]\n'
        '[batch]\nmax-rows = 4\n[models]\ntarget = "a"\n[decoding]\nthreshold = 0.9\n'
    )
    models, generation, server, session = settings("--config", str(path), "--port", "2", "--threshold", "0.8")
    assert (models.target, generation.gamma, generation.threshold) == ("a", 2, 0.8)
    assert (server.port, server.log_format, server.rate_limit, server.cors_origin) == (2, "json", 60, ("*",))
    assert session.max_rows == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown setting 'prot' in config file {path}; did you mean port?"),
        ("[server]\nmax_rows = 1", "unknown setting 'max_rows' in table [server] of config file {path}; "),
        ("[batch]\nmax_row = 1", "did you mean max_rows?"),
        ("[serve]\nport = 1", "unknown setting 'serve' in config file {path}; "),
        ("[server]\nport = 99999", "table [server] of config file {path}: port must be a whole number"),
        ("server = 1", "unknown setting 'server' in config file {path}"),
    ],
)
def test_a_mistake_names_its_place(text: str, message: str, tmp_path: Path, command: RunCommand) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    only_sentence(command("serve", "--config", str(path)), message.format(path=path))


def test_flags_of_the_server_are_read() -> None:
    words = "--cors-origin https://a.example --cors-origin https://b.example --token-rate-limit 1000 --log-prompts"
    _, _, server, _ = settings(*words.split(), "--keys-file", "keys", "--log-file", "log")
    assert server.cors_origin == ("https://a.example", "https://b.example")
    assert (server.token_rate_limit, server.log_prompts) == (1000, True)
    assert (server.keys_file, server.log_file) == ("keys", "log")
    with pytest.raises(ConfigError, match="rate_limit must be a number > 0"):
        settings("--rate-limit", "0")


def test_what_cannot_be_is_said_before_anything_is_loaded(tmp_path: Path, command: RunCommand, loads: Any) -> None:
    only_sentence(command("serve", "--log-file", str(tmp_path / "none" / "log")), "log file", "--log-file")
    only_sentence(command("serve", "--keys-file", str(tmp_path / "none")), "key file")
    only_sentence(command("serve", "--max-waiting", "3"), "--max-open")
    assert not loads
