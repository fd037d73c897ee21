"""`mtad distill` trains, shows a table, and refuses what it cannot use."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import tiny_model
from tests.unit.cli.conftest import RunCommand, only_sentence

FLAGS = ("--size", "32x1", "--tokens", "300", "--answer-tokens", "16", "--sampling-batch", "8", "--epochs", "1")


@pytest.fixture
def loads() -> None:
    """Models are loaded from their folders here."""


@pytest.fixture
def target(tmp_path: Path) -> str:
    folder = tmp_path / "target"
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_draft_is_trained_and_its_figures_shown(command: RunCommand, target: str, tmp_path: Path) -> None:
    out = tmp_path / "draft"
    outcome = command("distill", "--target", target, "--out", str(out), *FLAGS)
    assert outcome.status == 0, outcome.err
    assert [line.split()[:2] for line in outcome.out.splitlines()[1:3]] == [["32x1", "before"], ["32x1", "after"]]
    assert (out / "model.safetensors").is_file()
    again = command("distill", "--target", target, "--out", str(out), *FLAGS, "--json")
    assert again.status == 0
    assert 0 < json.loads(again.out)["drafts"]["32x1"]["after"]["overlap"] < 1


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ((), ("--out",)),
        (("--out", "x", "--size", "huge"), ("size must be nano, small, base", "'huge'")),
        (("--out", "x", "--time-budget", "8 minutes"), ("90s, 8m or 2h", "'8 minutes'")),
        (("--out", "x", "--time-budget", "0m"), ("90s, 8m or 2h",)),
        (("--out", "x", "--tokens", "0"), ("tokens must be", "got 0")),
        (("--out", "x", "--loss", "l2"), ("loss must be one of kl, tv, acceptance", "'l2'")),
    ],
)
def test_bad_settings_are_one_sentence(command: RunCommand, flags: tuple[str, ...], parts: tuple[str, ...]) -> None:
    only_sentence(command("distill", *flags), *parts)


def test_a_broken_prompts_file_is_refused_at_its_line(command: RunCommand, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": \n')
    outcome = command("distill", "--out", str(tmp_path / "draft"), "--prompts", str(prompts))
    only_sentence(outcome, "prompts.jsonl, line 2")
    assert not (tmp_path / "draft").exists()


def test_a_target_without_a_usable_vocabulary_is_refused(
    command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "draft"))
    bare = tmp_path / "bare"
    tiny_model("llama", dtype=torch.float32).save_pretrained(bare)
    capsys.readouterr()
    only_sentence(command("distill", "--target", str(bare), *out), "without tokenizer files", "copy the tokenizer")
    tiny_model("llama", dtype=torch.float32, vocab_size=40).save_pretrained(tmp_path / "narrow")
    tiny_tokenizer().save_pretrained(tmp_path / "narrow")
    capsys.readouterr()
    outcome = command("distill", "--target", str(tmp_path / "narrow"), *out)
    only_sentence(outcome, "got a target with 40 tokens, expected at least the 61")
    assert not (tmp_path / "draft/model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--vocab", "61"), "got --vocab 61, expected more than the 3 special tokens and fewer than the target's 61"),
        (("--head-rank", "32"), "got --head-rank 32 for a draft of width 32, expected less than its width"),
    ],
)
def test_drafts_that_cannot_be_made_are_refused(
    command: RunCommand,
    target: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    part: str,
) -> None:
    capsys.readouterr()
    outcome = command("distill", "--target", target, "--out", str(tmp_path / "draft"), *FLAGS, *flags)
    only_sentence(outcome, part)
    assert not (tmp_path / "draft/.work/tokens.bin").exists()


def test_a_run_with_other_settings_is_refused(command: RunCommand, target: str, tmp_path: Path) -> None:
    out = str(tmp_path / "draft")
    assert command("distill", "--target", target, "--out", out, *FLAGS).status == 0
    outcome = command("distill", "--target", target, "--out", out, *FLAGS, "--seed", "4")
    only_sentence(outcome, "seed was 0 and is 4", "another --out")
