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
    words = ("transformers", "transformers_static", "transformers_assisted", "autoregressive", "mmtad")
    outcome = command("bench", "--rules", *words, "--temperatures", "0", "1", *SHORT)
    assert outcome.status == 0, outcome.err
    tables = [line.split()[0] for line in outcome.out.splitlines()]
    assert tables == ["short", "contender", *words] * 2


@pytest.mark.parametrize("name", ["transformers", "transformers_static"])
def test_the_same_greedy_text_is_as_likely_by_either_account(
    command: RunCommand, engine: Engine, stock: None, name: str
) -> None:
    outcome = command("bench", "--rules", name, "autoregressive", "--temperatures", "0", "--json", *SHORT)
    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    peer, own = document["rows"]
    assert document["baseline"] == name
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


def test_a_profile_shares_every_stage_out_among_the_kinds(command: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    outcome = command("bench", "--rules", "autoregressive", "mmtad", "--profile", str(path), *SHORT)
    assert outcome.status == 0, outcome.err
    document = json.loads(path.read_text())
    assert set(document["contenders"]) == {"autoregressive", "mmtad"}
    for profile in document["contenders"].values():
        assert {"draft", "score", "verify", "keep", "rest"} == set(profile["stages"])
        for row in profile["stages"].values():
            parts = sum(value for key, value in row.items() if key != "wall_ms")
            assert parts >= row["wall_ms"] * 0.999
        assert profile["stages"]["score"]["matmuls_ms"] > 0
        assert profile["stages"]["score"]["attention_ms"] > 0
    assert profile["stages"]["draft"]["wall_ms"] > profile["stages"]["keep"]["wall_ms"] > 0
    assert "mmtad: milliseconds an iteration" in outcome.out


def test_peaks_are_taken_in_processes_of_their_own(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch, stock: None
) -> None:
    asked: list[list[str]] = []

    def peak(words: list[str]) -> dict[str, int | None]:
        config = Path(words[words.index("--config") + 1])
        assert json.loads(config.read_text())["gamma"] == 2
        asked.append(words)
        return {"host_bytes": 123_000_000 * len(asked), "device_bytes": None}

    monkeypatch.setattr("mtad.bench.memory.peak_memory_of", peak)
    outcome = command("bench", "--rules", "transformers", "autoregressive", "mtad", "--peak-memory", *SHORT)
    assert outcome.status == 0, outcome.err
    assert [words[words.index("--rules") + 1] for words in asked] == ["autoregressive", "mtad"]
    lines = outcome.out.splitlines()
    assert lines[1].endswith("peak MB")
    assert [line.split()[-1] for line in lines[3:5]] == ["123", "246"]


def test_a_process_knows_its_own_peak_and_a_failed_one_says_why() -> None:
    from mtad.bench.memory import peak_memory, peak_memory_of
    from mtad.errors import ConfigError

    assert (peak_memory()["host_bytes"] or 0) > 100_000_000
    with pytest.raises(ConfigError, match="measures memory failed: mtad bench: unknown flag --nonsense"):
        peak_memory_of(["bench", "--nonsense"])


def test_a_floor_is_the_bytes_of_the_calls_at_the_bandwidth(command: RunCommand, tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    outcome = command("bench", "--rules", "autoregressive", "mtad", "--json", "--record", str(record), *SHORT)
    assert outcome.status == 0, outcome.err
    document, found = json.loads(outcome.out), json.loads(record.read_text())
    model = tiny_model("llama")
    head_and_layers = sum(weight.nbytes for weight in model.parameters()) - model.get_input_embeddings().weight.nbytes
    single, drafted = (
        next(item for item in found["samples"] if item["contender"] == name) for name in ("autoregressive", "mtad")
    )
    assert single["floor_bytes"] >= single["num_iterations"] * head_and_layers
    assert drafted["floor_bytes"] >= drafted["num_iterations"] * 2 * head_and_layers
    shares = [row["floor_share"] for row in document["rows"]]
    assert all(0 < share < 1 for share in shares)
    assert document["bandwidth"] > 1e8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--rules", "llama_cpp", "--gguf", "/nowhere/model.gguf"), "there is no such file"),
        (("--rules", "llama_cpp", "--target", "somewhere/else"), "llama_cpp needs the target as a GGUF file"),
    ],
)
def test_extras_that_cannot_be_had_are_refused(command: RunCommand, words: tuple[str, ...], sentence: str) -> None:
    outcome = command("bench", *words)
    assert outcome.status == 2
    assert sentence in outcome.err


def test_joules_per_token_stand_in_the_table_for_our_own_contenders(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch, stock: None, tmp_path: Path
) -> None:
    monkeypatch.setattr("mtad.energy.meter.MINIMUM_WINDOW_S", 0.1)
    counter, record = tmp_path / "counter.json", tmp_path / "bench.json"
    seconds = [tick / 1000 for tick in range(1001)]
    counter.write_text(json.dumps({"seconds": seconds, "joules": {"gpu": [100 * moment for moment in seconds]}}))
    words = ("--rules", "transformers", "autoregressive", "--energy", "--record", str(record))
    outcome = command("bench", *words, "--meter", f"replay:{counter}", *SHORT)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("energy of GPU, replayed from a recording, not of this run")
    assert lines[2].endswith("J/token")
    assert lines[3].endswith("not measured"), "peers score their answers within a run"
    (row,) = json.loads(record.read_text())["energy"]["rows"]
    assert (row["num_batches"] % 2, row["num_tokens"]) == (0, 5 * row["num_batches"])
    assert row["reading"]["joules"]["gpu"] == pytest.approx(100 * row["reading"]["seconds"], rel=0.3)
    per_token = row["reading"]["joules"]["gpu"] / row["num_tokens"]
    assert float(lines[4].split()[-1]) == pytest.approx(per_token, rel=1e-2)
    nothing = command("bench", "--rules", "autoregressive", "--energy", "--meter", "none", *SHORT)
    assert nothing.status == 0, nothing.err
    assert nothing.out.splitlines()[0] == "energy: not measured: no meter was asked for"
    assert nothing.out.splitlines()[3].endswith("not measured")
