"""Prompts from a file: one per line of text, or JSON Lines."""

import json
from pathlib import Path
from typing import Any

from mtad.errors import PromptError

_KEYS = ("prompt", "messages", "turns")


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a `.jsonl` file, or the non-empty lines of any other file.

    Lines end at line feeds only: text may hold every other separator that Unicode knows. A JSON line is a text, or
    an object with `prompt` (text), `messages` (a conversation) or `turns` (the first is used, as in MT-Bench and
    Spec-Bench files).

    Raises:
        PromptError: The file is missing, not UTF-8, empty, or malformed at a line, which is named.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PromptError(f"prompts file {path} cannot be read: {error.strerror}; name a text or JSONL file") from error
    prompts = []
    is_json = path.suffix.lower() in (".jsonl", ".ndjson")
    for number, raw in enumerate(content.split(b"\n"), start=1):
        line = _decode_line(raw.removesuffix(b"\r"), path, number)
        if line.strip():
            prompts.append(_parse_line(line, path, number) if is_json else line)
    if not prompts:
        raise PromptError(f"prompts file {path} holds no prompt; write one per line")
    return prompts


def _decode_line(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"prompts file {path}, line {number}: not UTF-8; save the file as UTF-8") from error


def _parse_line(line: str, path: Path, number: int) -> Any:
    where = f"prompts file {path}, line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); write one object per line"
        ) from error
    except RecursionError as error:
        raise PromptError(f"{where}: nested too deeply; write one object per line") from error
    if isinstance(record, str) and record.strip():
        return record
    if isinstance(record, dict):
        for key in _KEYS:
            if key in record:
                return _take(record[key], key, where)
    raise PromptError(f"{where}: expected a text or an object with one of {', '.join(_KEYS)}, got {line[:60]!r}")


def _take(value: Any, key: str, where: str) -> Any:
    if key == "prompt" and isinstance(value, str) and value.strip():
        return value
    if key == "messages" and isinstance(value, list) and value and all(_is_message(item) for item in value):
        return value
    if key == "turns" and isinstance(value, list) and value and isinstance(value[0], str) and value[0].strip():
        return value[0]
    expected = {"prompt": "text", "messages": "a list of role and content objects", "turns": "a list of texts"}[key]
    raise PromptError(f"{where}: {key} must be {expected} and not empty, got {str(value)[:60]!r}")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
