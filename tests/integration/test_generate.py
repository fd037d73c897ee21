"""The command line with the real default pair."""

import json
import subprocess
import sys

import pytest

from mtad import Engine
from mtad.cli.main import main
from mtad.config import METHOD_NAMES
from mtad.models import loading

pytestmark = pytest.mark.integration

FLAGS = ("--device", "cpu", "--dtype", "float32", "--max-new-tokens", "10", "--gamma", "3", "--beam-width", "2")


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_writes_json(
    method: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load_models", lambda *_, **__: engine.models)
    assert main(["generate", "Name two fruits.", "--json", "--method", method, *FLAGS]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    stats = document["stats"]
    assert captured.err == ""
    assert document["method"] == method
    assert document["text"].strip()
    assert len(document["token_ids"]) == len(document["provenance"]) == len(document["log_probs"])
    assert 0 < stats["num_tokens"] <= 10
    assert stats["tokens_per_call"] == pytest.approx(stats["num_tokens"] / stats["target_calls"])
    assert 1 <= stats["perplexity"] < 100
    assert stats["tokens_per_s"] > 0
    assert stats["prefill_s"] > 0


def test_the_installed_command_answers_a_question() -> None:
    words = ["generate", "What is the capital of France?", "--temperature", "0", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mtad.cli.main", *words, *FLAGS], capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert document["text"].startswith("The capital of France is Paris")
    assert document["finish_reason"] == "stop"
    assert "drafted" in document["provenance"]
    assert document["config"]["models"]["target"] == "smollm2"
