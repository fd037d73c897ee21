"""`mtad doctor` examines pairs whose vocabularies are the same, others, or strangers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import tiny_model
from tests.two_tokenizers import VOCABULARY, byte_level_tokenizer, metaspace_tokenizer
from tests.unit.cli.conftest import RunCommand, only_sentence
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def loads() -> None:
    """Models are loaded from their folders here."""


def _save(folder: Path, tokenizer: Any = None, *, seed: int = 0, vocab_size: int = 61) -> str:
    tiny_model("llama", seed=seed, dtype=torch.float32, vocab_size=vocab_size).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


def test_a_pair_of_one_vocabulary(command: RunCommand, tmp_path: Path) -> None:
    target, draft = _save(tmp_path / "target"), _save(tmp_path / "draft", seed=1)
    outcome = command("doctor", "--target", target, "--draft", draft, "--quick")
    assert outcome.status == 0, outcome.err
    lines = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert "the same 61 tokens" in lines["tokenizers"]
    assert {"cost", "overlap", "autoregressive", "mtad", "mmtad", "verdict"} <= set(lines)


def test_a_pair_with_8_bit_weights(command: RunCommand, tmp_path: Path) -> None:
    target, draft = _save(tmp_path / "target"), _save(tmp_path / "draft", seed=1)
    arguments = ("--target", target, "--draft", draft, "--quantization", "int8", "--threads", "1")
    outcome = command("doctor", *arguments, "--quick", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert (report["models"]["quantization"], report["threads"]) == ("int8", 1)
    costs, figures = report["costs"], {item["method"]: item for item in report["methods"]}
    for method, nodes in {"mtad": "3", "mmtad": "9"}.items():
        cost = costs["verify"][nodes] + 3 * costs["draft_level"]
        assert figures[method]["predicted_speedup"] == pytest.approx(figures[method]["tokens_per_call"] / cost)
    assert 0 < report["overlap"]["value"] < 1


def test_a_target_as_its_own_draft(command: RunCommand, tmp_path: Path) -> None:
    target = _save(tmp_path / "target")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\nabc\n")
    arguments = ("--target", target, "--draft", target, "--prompts", str(prompts))
    outcome = command("doctor", *arguments, "--quick", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["overlap"]["value"] == pytest.approx(1, abs=1e-4)
    assert 0.5 < report["costs"]["draft"] < 2
    assert report["verdict"]["verdict"] in ("use", "do not use")
    kept = next(item for item in report["methods"] if item["method"].startswith("speculative"))
    assert kept["acceptance_by_depth"][0] > 0.9


def test_a_draft_of_another_vocabulary_is_translated(command: RunCommand, tmp_path: Path) -> None:
    target = _save(tmp_path / "target", byte_level_tokenizer(), vocab_size=VOCABULARY)
    draft = _save(tmp_path / "draft", metaspace_tokenizer(), vocab_size=VOCABULARY, seed=1)
    outcome = command("doctor", "--target", target, "--draft", draft, "--quick", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["tokenizers"]["fit"] == "translated"
    assert 0 < report["overlap"]["value"] < 1


def _foreign_tokenizer() -> Any:
    backend = Tokenizer(BPE(vocab={"<s>": 0, "あ": 1, "い": 2}, merges=[], unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")  # type: ignore[no-untyped-call]


def test_a_draft_of_a_stranger_is_not_used(command: RunCommand, tmp_path: Path) -> None:
    target = _save(tmp_path / "target")
    draft = _save(tmp_path / "draft", _foreign_tokenizer())
    outcome = command("doctor", "--target", target, "--draft", draft, "--quick")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("tokenizers  got a draft with another vocabulary")
    assert "verdict     train one: the draft does not read the target's tokens" in outcome.out


def test_a_target_without_a_draft_is_refused(command: RunCommand, tmp_path: Path) -> None:
    only_sentence(command("doctor", "--target", str(tmp_path)), "doctor needs a draft", "--draft", "mtad distill")
