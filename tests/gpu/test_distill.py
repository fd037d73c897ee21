"""Distilling on a CUDA device: the same losses as on the CPU, and a whole run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import tiny_model

from mtad.api import Engine
from mtad.config import DistillOptions, ModelOptions
from mtad.distill.losses import fused_loss
from mtad.distill.pipeline import Distillation
from mtad.distill.teacher import Teacher
from mtad.errors import DistillError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


# Kernels of several models are compiled, and dozens of batches captured.
takes_long = pytest.mark.timeout(300)


@pytest.mark.parametrize("loss", ["kl", "tv", "acceptance"])
def test_losses_and_gradients_are_those_of_the_cpu(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target, states, head = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 31), (9, 5), (31, 5))
    )
    found = []
    for device in ("cpu", "cuda"):
        logits = target.to(device)
        pair = (states.to(device).requires_grad_(), head.to(device).requires_grad_())
        losses, _ = fused_loss(lambda a, b, kept=logits: kept[a:b], [pair], loss, 4)  # type: ignore[misc]
        found.append([item.detach().cpu() for item in (losses[0], *torch.autograd.grad(losses[0], pair))])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def _target(folder: Path) -> ModelOptions:
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelOptions(target=str(folder), device="cuda")


def _options(**changes: Any) -> DistillOptions:
    quick: dict[str, Any] = {"size": ("64x2",), "tokens": 4000, "answer_tokens": 24, "sampling_batch": 64}
    return DistillOptions(**(quick | {"batch_tokens": 256} | changes))


def _run(models: ModelOptions, output: Path, note: Any = lambda *_: None, **changes: Any) -> Any:
    return Distillation(models, _options(**changes), [], output, note).run()


@takes_long
@pytest.mark.parametrize("changes", [{}, {"on_policy": 0.5, "vocab": 40, "head_rank": 16}], ids=["plain", "small"])
def test_a_run_ends_nearer_to_the_target_than_it_began(tmp_path: Path, changes: dict[str, Any]) -> None:
    models = _target(tmp_path / "target")
    report = _run(models, tmp_path / "draft", **changes)
    figures = report["drafts"]["64x2"]
    assert figures["after"]["overlap"] > figures["before"]["overlap"]
    engine = Engine.from_pretrained(models.target, draft=str(tmp_path / "draft"), device="cuda")
    assert engine.generate("hello", max_new_tokens=8).stats.num_tokens >= 1


@takes_long
def test_sampled_texts_are_the_same_again_after_a_kill(tmp_path: Path) -> None:
    models = _target(tmp_path / "target")

    def stop(stage: str, done: float, _: str) -> None:
        if stage == "sample" and 0.3 < done < 1:
            raise KeyboardInterrupt

    changes = {"sampling_batch": 16, "tokens": 3000, "epochs": 1}
    _run(models, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        _run(models, tmp_path / "killed", stop, **changes)
    _run(models, tmp_path / "killed", **changes)
    whole, killed = (tmp_path / name / ".work/tokens.bin" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@takes_long
def test_several_sizes_learn_at_once_and_go_on_with_their_drafts(tmp_path: Path) -> None:
    models = _target(tmp_path / "target")
    sizes = ("32x1", "64x2")
    first = _run(models, tmp_path / "first", size=sizes)
    second = _run(models, tmp_path / "second", size=sizes, init=str(tmp_path / "first/{size}"), learning_rate=1e-9)
    for size in sizes:
        before, after = second["drafts"][size]["before"], first["drafts"][size]["after"]
        # Other texts are held out.
        assert before["overlap"] == pytest.approx(after["overlap"], abs=0.1)


@takes_long
def test_a_bad_number_stops_it_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, logits = _target(tmp_path / "target"), Teacher.logits

    def poison(stage: str, done: float, _: str) -> None:
        if stage == "train" and done > 0.3:
            monkeypatch.setattr(Teacher, "logits", lambda teacher, encoded: logits(teacher, encoded) * torch.nan)

    with pytest.raises(DistillError, match="loss became nan at batch"):
        _run(models, tmp_path / "draft", poison)
    kept = torch.load(tmp_path / "draft/.work/checkpoint.pt", weights_only=True, map_location="cpu")
    assert all(weight.isfinite().all() for weights in kept["drafts"] for weight in weights.values())
