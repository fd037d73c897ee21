"""A whole run: what it writes, what loads it, and that kills and other settings are met with care."""

import json
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.distill.conftest import model_options, quick_options, silent
from tests.unit.models.test_adapters import save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtad.api import Engine
from mtad.config import DistillOptions
from mtad.distill.pairing import pair_overlap
from mtad.distill.pipeline import Distillation
from mtad.distill.store import Text
from mtad.errors import ConfigError, DistillError, MtadError
from mtad.models.loading import load_models


def _run(target: Path, output: Path, *, prompts: Any = ("abc", "hello"), note: Any = silent, **changes: Any) -> Any:
    return Distillation(model_options(target), quick_options(**changes), list(prompts), output, note).run()


@pytest.fixture(scope="module")
def finished(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    output = tmp_path_factory.mktemp("finished") / "draft"
    return output, _run(target_folder, output, on_policy=0.5)


def test_the_draft_loads_in_mtad(target_folder: Path, finished: tuple[Path, Any]) -> None:
    engine = Engine.from_pretrained(str(target_folder), draft=str(finished[0]), dtype="float32")
    assert engine.generate("hello", max_new_tokens=8).stats.num_tokens >= 1


def test_the_draft_assists_transformers(target_folder: Path, finished: tuple[Path, Any]) -> None:
    target: Any = AutoModelForCausalLM.from_pretrained(target_folder)
    draft: Any = AutoModelForCausalLM.from_pretrained(finished[0])
    inputs = AutoTokenizer.from_pretrained(finished[0])("hello there", return_tensors="pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = target.generate(**inputs, do_sample=False, max_new_tokens=12)
        assisted = target.generate(**inputs, do_sample=False, max_new_tokens=12, assistant_model=draft)
    assert torch.equal(alone, assisted)


def test_the_card_holds_the_figures(finished: tuple[Path, Any]) -> None:
    output, report = finished
    card = (output / "README.md").read_text()
    figures = report["drafts"]["32x1"]
    assert f"| overlap | {figures['before']['overlap']:.3f} | {figures['after']['overlap']:.3f} |" in card
    assert f"{report['train']['tokens']:,}" in card
    assert "2 given, the others written by the target" in card
    assert figures["after"]["overlap"] > figures["before"]["overlap"]


def test_the_target_s_adapter_writes_and_teaches(target_folder: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter")
    models = replace(model_options(target_folder), adapter=str(tmp_path / "adapter"))
    options = quick_options(size=("32x2",), init="layers", tokens=300, epochs=1)
    run = Distillation(models, options, ["abc"], tmp_path / "draft", silent)
    report = run.run()
    # All layers of the adapted target are the adapted target; those of the plain one are far from it.
    assert report["drafts"]["32x2"]["before"]["overlap"] == pytest.approx(1, abs=1e-4)
    plain = load_models(model_options(target_folder), wants_draft=False).target
    texts = [Text([5, 6, 7, 8, 9], 1)]
    run.models.target.attach()
    assert pair_overlap(run.models.target, plain, texts)[0] < 0.9
    assert f"with the adapter {tmp_path / 'adapter'}" in (tmp_path / "draft/README.md").read_text()
    with pytest.raises(DistillError, match=r"adapter was '.*' and is None"):
        Distillation(model_options(target_folder), options, ["abc"], tmp_path / "draft", silent)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("nowhere", "init must be pca, layers, random or the folder of a draft, got 'nowhere'"),
        ("layers", "got 9 layers for --init layers"),
        ("{empty}", "without a config.json"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused_before_any_text_is_sampled(
    target_folder: Path, tmp_path: Path, init: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    init = init.format(empty=tmp_path / "empty")
    with pytest.raises(MtadError, match=words):
        Distillation(
            model_options(target_folder), quick_options(size=("32x9",), init=init), [], tmp_path / "draft", silent
        )
    assert not (tmp_path / "draft/.work/tokens.bin").exists()


def test_several_sizes_have_folders_of_their_own(target_folder: Path, tmp_path: Path) -> None:
    report = _run(target_folder, tmp_path, size=("16x1", "32x2"), tokens=300, epochs=1)
    assert set(report["drafts"]) == {"16x1", "32x2"}
    assert all((tmp_path / name / "model.safetensors").is_file() for name in report["drafts"])


def test_every_size_goes_on_with_a_draft_of_its_own(target_folder: Path, tmp_path: Path) -> None:
    sizes = ("16x1", "32x2")
    first = _run(target_folder, tmp_path / "first", size=sizes, tokens=300, epochs=1)
    changes = {"size": sizes, "tokens": 300, "epochs": 1, "learning_rate": 1e-9}
    with pytest.raises(ConfigError, match=r"one draft to begin 2 sizes with .*let \{size\} stand"):
        _run(target_folder, tmp_path / "second", init=str(tmp_path / "first/16x1"), **changes)
    second = _run(target_folder, tmp_path / "second", init=str(tmp_path / "first/{size}"), **changes)
    for size in sizes:
        before, after = second["drafts"][size]["before"], first["drafts"][size]["after"]
        assert before["overlap"] == pytest.approx(after["overlap"], abs=1e-3)


def test_batches_suit_the_device_unless_they_are_given(target_folder: Path, tmp_path: Path) -> None:
    chosen = Distillation(model_options(target_folder), DistillOptions(), [], tmp_path / "auto", silent).options
    assert (chosen.sampling_batch, chosen.batch_tokens) == (32, 4096)
    given = Distillation(model_options(target_folder), quick_options(), [], tmp_path / "given", silent).options
    assert (given.sampling_batch, given.batch_tokens) == (8, 256)


def test_a_finished_run_is_not_run_again(target_folder: Path, finished: tuple[Path, Any]) -> None:
    output, report = finished
    again = _run(target_folder, output, on_policy=0.5)
    assert again["train"] == report["train"]
    assert again["drafts"] == report["drafts"]


def test_other_settings_are_refused_with_the_difference(target_folder: Path, finished: tuple[Path, Any]) -> None:
    with pytest.raises(DistillError, match=r"other settings \(loss was 'kl' and is 'tv'\); give the same ones"):
        _run(target_folder, finished[0], loss="tv", on_policy=0.5)
    with pytest.raises(DistillError, match=r"\(prompts was '.*' and is None\)"):
        _run(target_folder, finished[0], prompts=(), on_policy=0.5)
    options = quick_options(learning_rate=0.1, on_policy=0.5)
    Distillation(model_options(target_folder), options, ["abc", "hello"], finished[0], silent)


def test_a_run_that_has_done_nothing_may_begin_again_otherwise(target_folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        run = Distillation(model_options(target_folder), quick_options(seed=seed), ["abc"], tmp_path, silent)
        assert run.work.read("settings")["seed"] == seed
    (tmp_path / ".work/tokens.bin").write_bytes(b"12")
    with pytest.raises(DistillError, match="seed was 2 and is 3"):
        Distillation(model_options(target_folder), quick_options(seed=3), ["abc"], tmp_path, silent)


FULL = """
import resource, sys
from mtad.cli.main import main
from mtad.cli.distill import Bars
from mtad.distill import training

training.CHECKPOINT_S = 0.0
stage, done, size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])

def note(self, found, share, words):
    if found == stage and share >= done:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

Bars.note = note
sys.exit(main(sys.argv[4:]))
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from mtad.cli.main import main
from mtad.cli.distill import Bars
from mtad.distill import training

training.CHECKPOINT_S = 0.0
stage, done = sys.argv[1], float(sys.argv[2])

def note(self, found, share, words):
    if found == stage and share >= done:
        os.kill(os.getpid(), signal.SIGKILL)

Bars.note = note
sys.exit(main(sys.argv[3:]))
"""


def _arguments(target_folder: Path, folder: Path) -> list[str]:
    """The command whose result is the finished run's."""
    prompts = folder / "prompts.txt"
    prompts.write_text("abc\nhello\n")
    options = quick_options()
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("tokens", "answer_tokens", "epochs")]
    flags += [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("sampling_batch", "batch_tokens")]
    arguments = ["distill", "--target", str(target_folder), "--out", str(folder / "draft"), "--size", "32x1", *flags]
    return [*arguments, "--on-policy", "0.5", "--dtype", "float32", "--device", "cpu", "--prompts", str(prompts)]


@pytest.mark.parametrize(
    ("stage", "done"),
    [("sample", 0.4), ("train", 0.5), ("on-policy", 0.4), ("evaluate", 0.5), ("write", 0.0)],
)
def test_a_run_killed_in_any_stage_ends_as_if_it_had_not_been(
    target_folder: Path, finished: tuple[Path, Any], tmp_path: Path, stage: str, done: float
) -> None:
    output = tmp_path / "draft"
    arguments = _arguments(target_folder, tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, stage, str(done), *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (output / "model.safetensors").exists()
    _run(target_folder, output, on_policy=0.5)
    assert json.loads((output / ".work/train.json").read_text())["is_finished"]
    found, expected = (load_file(folder / "model.safetensors") for folder in (output, finished[0]))
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize(
    ("stage", "done", "size"), [("sample", 0.4, 1_800), ("on-policy", 0.1, 30_000), ("write", 0.0, 20_000)]
)
def test_a_disk_that_is_full_is_one_sentence_and_nothing_is_lost(
    target_folder: Path, finished: tuple[Path, Any], tmp_path: Path, stage: str, done: float, size: int
) -> None:
    arguments = _arguments(target_folder, tmp_path)
    command = [sys.executable, "-c", FULL, stage, str(done), str(size), *arguments]
    full = subprocess.run(command, check=False, capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert "cannot be written (File too large); free some space and run the same command again" in full.stderr
    assert not (tmp_path / "draft/model.safetensors").exists()
    _run(target_folder, tmp_path / "draft", on_policy=0.5)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "draft", finished[0]))
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
