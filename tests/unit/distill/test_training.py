"""Training lowers the loss, goes on after a kill as if there had been none, and stops at the first bad number."""

import errno
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_model
from tests.unit.distill.conftest import quick_options, silent

from mtad.distill import training
from mtad.distill.beginnings import begin_draft
from mtad.distill.lessons import Classroom, measure_overlap
from mtad.distill.shapes import DraftShape
from mtad.distill.store import StoredTexts, Text, TextStore
from mtad.distill.teacher import Teacher
from mtad.distill.training import Trainer, order_batches, rate_factor
from mtad.distill.work import WorkFolder
from mtad.errors import CapacityError, DistillError


@pytest.fixture
def texts(tmp_path: Path) -> StoredTexts:
    work = WorkFolder(tmp_path / "texts")
    work.open({})
    store = TextStore(work, 61)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        lengths = torch.randint(6, 40, (8,), generator=generator).tolist()
        store.append([Text(torch.randint(3, 61, (size,), generator=generator).tolist(), 2) for size in lengths], 0.1)
    return store.open()


def _trainer(
    folder: Path,
    *,
    name: str = "llama",
    checkpoint_s: float = 60,
    clock: Any = time.perf_counter,
    look: int = 1,
    **changes: Any,
) -> Trainer:
    work = WorkFolder(folder)
    work.open({})
    target = tiny_model(name, dtype=torch.float32)
    options = quick_options(**({"learning_rate": 0.01} | changes))
    drafts = [begin_draft(DraftShape(item, 32, 1), target, "pca", 0) for item in ("one", "two")]
    classroom = Classroom(Teacher(target, 61), drafts, options.loss, eos_token_ids=[2])
    return Trainer(classroom, options, work, checkpoint_s=checkpoint_s, clock=clock, look_batches=look)


def _weights(trainer: Trainer) -> list[Any]:
    return [weight.detach() for draft in trainer.drafts for weight in draft.parameters()]


@pytest.mark.parametrize(
    ("loss", "on_policy"), [("kl", 0.0), ("tv", 0.0), ("acceptance", 0.0), ("kl", 0.5), ("acceptance", 1.0)]
)
def test_the_overlap_grows(texts: StoredTexts, tmp_path: Path, loss: str, on_policy: float) -> None:
    trainer = _trainer(tmp_path, loss=loss, epochs=12, on_policy=on_policy)
    numbers = list(range(60))
    before = measure_overlap(trainer.classroom, texts, numbers)
    trainer.run(texts, numbers, None, silent)
    after = measure_overlap(trainer.classroom, texts, numbers)
    assert all(new > old + 0.02 for new, old in zip(after, before, strict=True))


def test_a_target_with_capped_logits_teaches_what_it_would_say(texts: StoredTexts, tmp_path: Path) -> None:
    teacher = Teacher(tiny_model("gemma2", dtype=torch.float32, final_logit_softcapping=2.0), 61)
    tokens, places = texts.pad([0, 1], torch.device("cpu"))
    expected = teacher.model(input_ids=tokens).logits.flatten(0, 1)[places]
    torch.testing.assert_close(teacher.logits(teacher.encode(tokens, places)), expected)


@pytest.mark.parametrize("killed_in", ["train", "on-policy"])
def test_a_killed_run_ends_with_the_same_weights(texts: StoredTexts, tmp_path: Path, killed_in: str) -> None:
    numbers = list(range(60))
    whole = _trainer(tmp_path / "whole", accumulation=2, on_policy=0.5)
    whole.run(texts, numbers, None, silent)
    killed = _trainer(tmp_path / "killed", accumulation=2, on_policy=0.5, checkpoint_s=0)

    def stop(stage: str, done: float, _: str) -> None:
        if stage == killed_in and done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(texts, numbers, None, stop)
    again = _trainer(tmp_path / "killed", accumulation=2, on_policy=0.5)
    again.run(texts, numbers, None, silent)
    assert again.state["tokens"] == whole.state["tokens"]
    for one, two in zip(_weights(again), _weights(whole), strict=True):
        assert torch.equal(one, two)


def test_a_bad_number_stops_it_and_the_last_checkpoint_stays(
    texts: StoredTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, checkpoint_s=0)

    def poison(_: str, done: float, __: str) -> None:
        if done > 0.3:
            monkeypatch.setattr(Teacher, "logits", lambda *_: torch.full((1, 61), torch.nan))

    with pytest.raises(DistillError, match=r"loss became nan at batch .*last good checkpoint .*lower --learning-rate"):
        trainer.run(texts, list(range(60)), None, poison)
    kept = torch.load(tmp_path / ".work/checkpoint.pt", weights_only=True)
    assert kept["state"]["batches"] > 1
    assert all(weight.isfinite().all() for weights in kept["drafts"] for weight in weights.values())


def test_looking_now_and_then_changes_no_weight(texts: StoredTexts, tmp_path: Path) -> None:
    told: list[list[float]] = [[], []]
    for look, seen in zip((1, 4), told, strict=True):
        trainer = _trainer(tmp_path / str(look), look=look, epochs=3)
        trainer.run(texts, list(range(60)), None, lambda _, done, __, kept=seen: kept.append(done))  # type: ignore[misc]
    one, two = (torch.load(tmp_path / f"{look}/.work/checkpoint.pt", weights_only=True)["drafts"] for look in (1, 4))
    assert all(torch.equal(weight, two[0][name]) for name, weight in one[0].items())
    assert told[1] == [*told[0][3::4], *([told[0][-2]] if (len(told[0]) - 1) % 4 else []), 1.0]


def test_a_bad_number_is_found_before_a_checkpoint_however_seldom_one_looks(
    texts: StoredTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, checkpoint_s=0, look=1000)
    calls = itertools.count()
    logits = Teacher.logits

    def poisoned(teacher: Teacher, encoded: Any) -> Any:
        found = logits(teacher, encoded)
        return found if next(calls) < 1 else torch.full_like(found, torch.nan)

    monkeypatch.setattr(Teacher, "logits", poisoned)
    with pytest.raises(DistillError, match="the loss became nan at batch 2,"):
        trainer.run(texts, list(range(60)), None, silent)
    kept = torch.load(tmp_path / ".work/checkpoint.pt", weights_only=True)
    assert kept["state"]["batches"] == 1
    assert all(weight.isfinite().all() for weights in kept["drafts"] for weight in weights.values())


def test_a_bad_gradient_behind_beams_stops_it_and_it_goes_on_with_a_lower_rate(
    texts: StoredTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, checkpoint_s=0, on_policy=0.5)

    def poison(stage: str, done: float, _: str) -> None:
        if stage == "on-policy" and done > 0.3:
            monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))

    with pytest.raises(DistillError, match="gradient became inf at batch"):
        trainer.run(texts, list(range(60)), None, poison)
    monkeypatch.undo()
    again = _trainer(tmp_path, learning_rate=0.001, on_policy=0.5)
    again.run(texts, list(range(60)), None, silent)
    assert again.state["is_finished"]
    assert all(weight.isfinite().all() for weight in _weights(again))


def test_an_epoch_is_put_in_order_once(texts: StoredTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[str] = []

    def count(texts: StoredTexts, numbers: Any, batch_tokens: int, seed: str) -> list[list[int]]:
        orders.append(seed)
        return order_batches(texts, numbers, batch_tokens, seed)

    monkeypatch.setattr(training, "order_batches", count)
    _trainer(tmp_path, epochs=3).run(texts, list(range(60)), None, silent)
    # The fourth is looked at to find out that the third is over.
    assert orders == ["0 0", "0 1", "0 2", "0 3"]


def test_a_time_budget_ends_it_however_much_text_there_is(texts: StoredTexts, tmp_path: Path) -> None:
    ticks = itertools.count()
    trainer = _trainer(tmp_path, epochs=1, clock=lambda: 0.1 * next(ticks))
    trainer.run(texts, list(range(60)), 4.0, silent)
    assert trainer.state["is_finished"]
    # More batches than the epoch has, a tenth of a second each.
    assert trainer.state["batches"] == pytest.approx(40, abs=1)
    again = _trainer(tmp_path, epochs=1)
    again.run(texts, list(range(60)), 4.0, silent)
    assert again.state == trainer.state


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_factor(place / 100) for place in range(101)]
    assert rates[0] == 0.05
    assert max(rates) == rates[2] == 1
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)


def test_an_epoch_holds_every_text_once_in_batches_of_the_size(texts: StoredTexts) -> None:
    numbers = list(range(3, 60))
    batches = order_batches(texts, numbers, 128, "0 0")
    assert sorted(number for batch in batches for number in batch) == numbers
    assert all(len(batch) * max(texts.lengths[batch]) <= 128 for batch in batches)
    assert batches != order_batches(texts, numbers, 128, "0 1")


def test_a_full_disk_keeps_the_checkpoint_before(
    texts: StoredTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path)
    trainer.save()
    before = (tmp_path / ".work/checkpoint.pt").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DistillError, match="free some space and run the same command again"):
        trainer.save()
    assert (tmp_path / ".work/checkpoint.pt").read_bytes() == before


def test_exhausted_memory_names_what_to_lower(
    texts: StoredTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Teacher, "encode", exhausted)
    with pytest.raises(CapacityError, match="lower --batch-tokens"):
        _trainer(tmp_path).run(texts, list(range(60)), None, silent)
