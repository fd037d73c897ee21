"""`mtad bench` shows a table, writes a record, goes on with it, and refuses what it cannot run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import tiny_model
from tests.unit.cli.conftest import RunCommand, only_sentence

from mtad.api import Engine

SHORT = ("--new-tokens", "5", "--repeats", "2", "--gamma", "2", "--beam-width", "2")


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own decoding gets two tiny models."""

    def load(_: Engine) -> Any:
        return tiny_model("llama"), tiny_model("llama", seed=1)

    monkeypatch.setattr(Engine, "load_stock_models", load)


def test_every_contender_has_a_line_in_every_workload(command: RunCommand, stock: None) -> None:
    words = ("transformers", "transformers_assisted", "autoregressive", "mmtad")
    outcome = command("bench", "--rules", *words, "--temperatures", "0", "1", *SHORT)
    assert outcome.status == 0, outcome.err
    tables = [line.split()[0] for line in outcome.out.splitlines()]
    assert tables == ["short", "contender", *words] * 2


def test_the_same_greedy_text_is_as_likely_by_either_account(command: RunCommand, engine: Engine, stock: None) -> None:
    outcome = command("bench", "--rules", "transformers", "autoregressive", "--temperatures", "0", "--json", *SHORT)
    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    peer, own = document["rows"]
    assert document["baseline"] == "transformers"
    assert peer["perplexity"] == pytest.approx(own["perplexity"], rel=1e-6)
    assert (peer["tokens_per_call"], own["tokens_per_call"]) == (1, 1)
    assert own["num_samples"] == 2
    assert own["ratio"]["value"] > 0


def test_prompts_are_as_long_as_asked_and_batches_as_large(command: RunCommand, stock: None, tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    arguments = ("--rules", "transformers", "transformers_assisted", "mtad", "--batch-sizes", "3", "--record")
    outcome = command("bench", *arguments, str(record), *SHORT)
    assert outcome.status == 0, outcome.err
    samples = json.loads(record.read_text())["samples"]
    assert {item["contender"] for item in samples} == {"transformers", "mtad"}
    assert all(item["num_tokens"] == 15 for item in samples)
    assert "transformers_assisted: not measured, transformers assists one prompt at a time" in outcome.out


def test_a_killed_run_goes_on_from_its_record(command: RunCommand, tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    arguments = ("bench", "--rules", "autoregressive", "mtad", "--record", str(record), *SHORT)
    assert command(*arguments).status == 0
    whole = json.loads(record.read_text())
    partial = whole | {"samples": whole["samples"][:3]}
    record.write_text(json.dumps(partial))
    assert command(*arguments).status == 0
    after = json.loads(record.read_text())
    assert after["samples"][:3] == partial["samples"]
    assert len(after["samples"]) == 4
    other = command(*arguments[:-1], "3")
    assert other.status == 2
    assert "its setup differs" in other.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--new-tokens", "1"), "new_tokens must be"),
        (("--batch-sizes", "0"), "batch_sizes must be"),
        (("--temperature", "1"), "bench takes no --temperature; use --temperatures instead"),
        (("--method", "mtad"), "bench takes no --method; use --rules instead"),
        (("--rules", "nonsense"), "unknown rule 'nonsense'"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(
    command: RunCommand, words: tuple[str, ...], sentence: str
) -> None:
    outcome = command("bench", *words)
    assert outcome.status == 2
    assert sentence in outcome.err
    only_sentence(outcome)
