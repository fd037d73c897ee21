"""Keys: where they come from, and which one was given."""

from pathlib import Path

import pytest

from mtad.errors import ConfigError
from mtad.server.gate import name_of_key, read_keys


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nme one\n\nyou  two\n")
    assert read_keys(path, {"MTAD_API_KEYS": "x:y"}) == {"me": "one", "you": "two"}
    assert read_keys(None, {"MTAD_API_KEYS": "me:one,you:t:wo"}) == {"me": "one", "you": "t:wo"}
    assert read_keys(None, {}) == {}


def test_what_is_no_key_is_said(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("me one\nyou\n")
    with pytest.raises(ConfigError, match="API key 2 is not a name and a key"):
        read_keys(path, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none", {})


@pytest.mark.parametrize(("header", "name"), [("Bearer one", "me"), ("Bearer two", None), ("", None), (None, None)])
def test_a_header_names_its_key(header: str | None, name: str | None) -> None:
    assert name_of_key({"me": "one"}, header) == name
