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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


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


@pytest.mark.parametrize("changes", [{}, {"on_policy": 0.5, "vocab": 40, "head_rank": 16}], ids=["plain", "small"])
def test_a_run_ends_nearer_to_the_target_than_it_began(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "target"
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    options = DistillOptions(size=("64x2",), tokens=4000, answer_tokens=24, batch_tokens=256, **changes)
    models = ModelOptions(target=str(folder), device="cuda")
    report = Distillation(models, options, [], tmp_path / "draft", lambda *_: None).run()
    figures = report["drafts"]["64x2"]
    assert figures["after"]["overlap"] > figures["before"]["overlap"]
    engine = Engine.from_pretrained(str(folder), draft=str(tmp_path / "draft"), device="cuda")
    assert engine.generate("hello", max_new_tokens=8).stats.num_tokens >= 1
