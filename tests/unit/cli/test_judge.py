"""`mtad judge` refuses in one sentence."""

import json
from pathlib import Path

from tests.unit.cli.conftest import RunCommand, only_sentence


def test_bad_input_is_one_sentence(command: RunCommand, tmp_path: Path) -> None:
    base = ("judge", str(tmp_path), "--data", str(tmp_path), "--model", "judge")
    only_sentence(command("judge", str(tmp_path)), "judge needs --data DIR")
    only_sentence(command(*base, "--endpoint", "ftp://x"), "must begin with http")
    only_sentence(command(*base, "--endpoint", "http://127.0.0.1:9/v1"), "items.jsonl cannot be read")
    entry = {"task": "gsm8k", "contender": "c", "seed": 0, "start": 0}
    (tmp_path / "items.jsonl").write_text(json.dumps(entry) + "\n")
    only_sentence(command(*base, "--endpoint", "http://127.0.0.1:9/v1"), "has no answers to mt_bench")
