"""Files of prompts: text and JSON Lines, in every shape that editors and other systems give them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtad.cli.prompt_files import read_prompts
from mtad.errors import PromptError


def read(folder: Path, content: bytes, name: str = "prompts.txt") -> list[Any]:
    path = folder / name
    path.write_bytes(content)
    return read_prompts(path)


def refusal(folder: Path, content: bytes, name: str = "prompts.txt") -> str:
    with pytest.raises(PromptError) as caught:
        read(folder, content, name)
    message = str(caught.value)
    assert str(folder / name) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        b"one\ntwo\n",
        b"one\ntwo",
        b"\xef\xbb\xbfone\ntwo\n",
        b"one\r\ntwo\r\n",
        b"\n\none\n  \n\t\ntwo\n\n",
        b"\r\none\r\ntwo",
    ],
)
def test_lines_become_prompts(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, content) == ["one", "two"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\r"])
def test_only_line_feeds_end_a_line_of_text(separator: str, tmp_path: Path) -> None:
    text = f"one{separator}two"
    assert read(tmp_path, f"{text}\nthree\n".encode()) == [text, "three"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_line_feeds_end_a_json_line(separator: str, tmp_path: Path) -> None:
    text = f"one{separator}two"
    assert read(tmp_path, f'{{"prompt": "{text}"}}\n"three"\n'.encode(), "prompts.jsonl") == [text, "three"]


def test_inner_and_outer_spaces_of_a_text_line_stay(tmp_path: Path) -> None:
    assert read(tmp_path, b"  def f(x):  \n") == ["  def f(x):  "]


@given(lines=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1)))
def test_every_text_line_comes_back(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    kept = [line for line in lines if line.strip() and not line.startswith("\ufeff")]
    if kept:
        folder = tmp_path_factory.mktemp("prompts")
        assert read(folder, "\n".join(kept).encode()) == kept


@pytest.mark.parametrize("name", ["prompts.jsonl", "PROMPTS.JSONL", "prompts.ndjson"])
def test_json_lines_hold_texts_conversations_and_benchmark_turns(name: str, tmp_path: Path) -> None:
    content = b"""\xef\xbb\xbf{"prompt": "one", "id": 7}\r
"two \\u00e9\\n"

{"messages": [{"role": "user", "content": "three"}]}
{"question_id": 81, "turns": ["four", "later"]}
"""
    assert read(tmp_path, content, name) == ["one", "two \xe9\n", [{"role": "user", "content": "three"}], "four"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "one"', "not JSON"),
        (b"one", "not JSON"),
        (b'{"text": "one"}', "expected a text or an object with one of prompt, messages, turns"),
        (b"[1, 2]", "expected a text or an object"),
        (b"7", "expected a text or an object"),
        (b'""', "expected a text or an object"),
        (b'{"prompt": ""}', "prompt must be text and not empty"),
        (b'{"prompt": ["one"]}', "prompt must be text and not empty"),
        (b'{"messages": []}', "messages must be a list of role and content objects"),
        (b'{"messages": [{"role": "user"}]}', "messages must be a list of role and content objects"),
        (b'{"messages": "one"}', "messages must be a list of role and content objects"),
        (b'{"turns": [3]}', "turns must be a list of texts"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "\xff"}', "not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_malformed_json_line_is_named(line: bytes, reason: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, b'{"prompt": "fine"}\n\n' + line + b"\n", "prompts.jsonl")
    assert f"line 3: {reason}" in message
    assert len(message) < 350 + len(str(tmp_path))


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    assert "line 2: not UTF-8" in refusal(tmp_path, "fine\ncaf\xe9\n".encode("latin-1"))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t\n"])
def test_a_file_without_prompts_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "holds no prompt; write one per line" in refusal(tmp_path, content)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read: No such file or directory; name a text or JSONL file"):
        read_prompts(tmp_path / "missing.txt")
    with pytest.raises(PromptError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path)
