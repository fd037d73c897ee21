"""The training loop: checkpoints, a learning rate that honours a time budget, and a stop at the first bad number.

On CUDA the host looks at losses, gradients and overlaps every few batches, and always before it saves.
"""

import math
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtad.config import DistillOptions
from mtad.config.distillation import CPU_BATCH_TOKENS
from mtad.distill.beams import spread_roots
from mtad.distill.lessons import Classroom, Lesson
from mtad.distill.sampling import Note
from mtad.distill.store import StoredTexts
from mtad.distill.team import Team
from mtad.distill.work import WorkFolder, disk_errors, sync, training_memory_errors
from mtad.errors import DistillError

STAGE, BEAM_STAGE = "train", "on-policy"
EVALUATION_SHARE = 0.08
"""Of a time budget."""
CHECKPOINT_S = 60.0
_WARMUP_SHARE, _LAST_RATE = 0.02, 0.02
_POOL_BATCHES = 32
_CUDA_LOOK_BATCHES = 16
_WEIGHT_DECAY, _BETAS, _LARGEST_GRADIENT = 0.01, (0.9, 0.95), 1.0


def order_batches(texts: StoredTexts, numbers: Sequence[int], batch_tokens: int, seed: str) -> list[list[int]]:
    """One epoch: shuffled, but texts of like length side by side, so that little is padding.

    Args:
        texts: Their lengths.
        numbers: The texts to use.
        batch_tokens: Rows times longest of one batch, at most (one text alone may exceed it).
        seed: Of the order.
    """
    random = Random(seed)
    shuffled = list(numbers)
    random.shuffle(shuffled)
    mean = max(float(np.mean(texts.lengths)), 1.0)
    pool = max(int(_POOL_BATCHES * batch_tokens / mean), 1)
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), pool):
        batches += texts.group(shuffled[start : start + pool], batch_tokens)
    random.shuffle(batches)
    return batches


def rate_factor(progress: float) -> float:
    """Share of the largest learning rate after a share of the training: a short rise, then a cosine's fall."""
    if progress < _WARMUP_SHARE:
        return max(progress / _WARMUP_SHARE, 0.05)
    fallen = 0.5 + 0.5 * math.cos(math.pi * min((progress - _WARMUP_SHARE) / (1 - _WARMUP_SHARE), 1.0))
    return _LAST_RATE + (1 - _LAST_RATE) * fallen


class Trainer:
    """Trains several drafts at once against one teacher.

    Args:
        classroom: The target, and drafts that are trained in place.
        options: Batches, rates, and when the drafts' own beams begin to be read.
        work: Where checkpoints go.
        checkpoint_s: Seconds between them.
        team: The processes that share every batch.
        clock: Seconds, for rates and time budgets.
        look_batches: Batches between two looks at what they gave; 16 on CUDA and 1 elsewhere when None.
    """

    def __init__(
        self,
        classroom: Classroom,
        options: DistillOptions,
        work: WorkFolder,
        *,
        checkpoint_s: float = CHECKPOINT_S,
        team: Team | None = None,
        clock: Callable[[], float] = time.perf_counter,
        look_batches: int | None = None,
    ) -> None:
        self.checkpoint_s, self.team, self.clock = checkpoint_s, team or Team(), clock
        self.classroom, self.drafts, self.options, self.work = classroom, classroom.drafts, options, work
        self.on_policy_from = 1 - options.on_policy
        self._optimizers = [_optimizer(draft, options) for draft in self.drafts]
        self.state: dict[str, Any] = {"batches": 0, "tokens": 0, "seconds": 0.0, "is_finished": False}
        self._file = work.path / "checkpoint.pt"
        self._kept_epoch: tuple[int, list[list[int]]] = (-1, [])
        self._lengths: dict[int, int] = {}
        self._look_batches = look_batches or (_CUDA_LOOK_BATCHES if classroom.device.type == "cuda" else 1)
        self._unseen: list[Tensor] = []
        self._reached = 0.0

    def run(self, texts: StoredTexts, numbers: Sequence[int], seconds: float | None, note: Note) -> None:
        """Train to the end of the epochs or of the time.

        Args:
            texts: The sampled text.
            numbers: Those to train on.
            seconds: Time there is, what was spent before a kill included; None without a limit.
            note: Told about every batch.

        Raises:
            DistillError: The loss or a gradient is no number, or a checkpoint cannot be written.
            CapacityError: The memory is not there.
        """
        self._resume()
        saved = time.perf_counter()
        while not self.state["is_finished"]:
            started = self.clock()
            epoch, batches, place = self._locate(texts, numbers)
            is_late = time.perf_counter() - saved > self.checkpoint_s
            # Clocks differ between processes; the first one's counts.
            progress, is_late = self.team.gather((self._progress(epoch, place, len(batches), seconds), is_late))[0]
            if progress < 1:
                with training_memory_errors():
                    self._unseen.append(self._train_batch(texts, batches[place], progress, is_step=self._is_step()))
                self._reached = progress
                self.state["batches"] += 1
                self.state["tokens"] += int(texts.lengths[batches[place]].sum())
            is_due = progress >= 1 or (is_late and self.state["batches"] % self.options.accumulation == 0)
            if is_due or len(self._unseen) >= self._look_batches:
                self._look(note)
            self.state["seconds"] += self.clock() - started
            self.state["is_finished"] = progress >= 1
            if is_due:
                self.save()
                saved = time.perf_counter()
        note(BEAM_STAGE if self.options.on_policy else STAGE, 1.0, "")

    def _look(self, note: Note) -> None:
        """Read what the batches since the last look gave, and stop at a bad number."""
        if not self._unseen:
            return
        with training_memory_errors():
            rows = torch.stack(self._unseen).tolist()
        first = self.state["batches"] - len(rows) + 1
        self._unseen.clear()
        for number, (loss, gradient, *_) in enumerate(rows, first):
            self._check(loss, "loss", number)
            self._check(gradient, "gradient", number)
        self._tell(self._reached, rows[-1][2:], note)

    def _tell(self, progress: float, overlaps: list[float], note: Note) -> None:
        rate = self.state["tokens"] / max(self.state["seconds"], 1e-9)
        words = f"overlap {'/'.join(f'{item:.3f}' for item in overlaps)}, {rate:.0f} tokens/s"
        if progress < self.on_policy_from:
            note(STAGE, progress / self.on_policy_from, words)
        else:
            note(BEAM_STAGE, (progress - self.on_policy_from) / self.options.on_policy, words)

    def _locate(self, texts: StoredTexts, numbers: Sequence[int]) -> tuple[int, list[list[int]], int]:
        """The epoch, its batches and the next of them, from the number of batches done."""
        epoch, done = 0, self.state["batches"]
        while True:
            if epoch not in self._lengths:
                self._lengths[epoch] = len(self._epoch(texts, numbers, epoch))
            if done < self._lengths[epoch]:
                return epoch, self._epoch(texts, numbers, epoch), done
            done -= self._lengths[epoch]
            epoch += 1

    def _epoch(self, texts: StoredTexts, numbers: Sequence[int], epoch: int) -> list[list[int]]:
        if self._kept_epoch[0] != epoch:
            seed = f"{self.options.seed} {epoch}"
            self._kept_epoch = (
                epoch,
                order_batches(texts, numbers, self.options.batch_tokens or CPU_BATCH_TOKENS, seed),
            )
        return self._kept_epoch[1]

    def _progress(self, epoch: int, place: int, num_batches: int, seconds: float | None) -> float:
        if seconds is not None:
            # With a time budget the passes are not counted: more of them are better than idle time.
            return float(self.state["seconds"] / max(seconds, 1e-9))
        return (epoch + place / num_batches) / self.options.epochs

    def _is_step(self) -> bool:
        return bool((self.state["batches"] + 1) % self.options.accumulation == 0)

    def _train_batch(self, texts: StoredTexts, batch: list[int], progress: float, *, is_step: bool) -> Tensor:
        """Loss, largest gradient norm (0 without a step) and overlaps, on the device, `[2 + drafts]` float64."""
        mine = batch[self.team.rank :: self.team.size]
        lesson = self._teach(texts, batch, progress) if mine else self.classroom.nothing()
        losses, overlaps = self._weigh(lesson)
        total = torch.stack(losses).sum() / self.options.accumulation
        sums = torch.cat([total.detach().double().view(1), overlaps])
        self.team.add([sums])
        if mine:
            total.backward()  # type: ignore[no-untyped-call]
        norm = self._step(progress) if is_step else torch.zeros_like(sums[0])
        return torch.cat([sums[:1], norm.to(sums).view(1), sums[1:]])

    def _weigh(self, lesson: Lesson) -> tuple[list[Tensor], Tensor]:
        """Losses and overlaps by this process's share of the batch's places."""
        if self.team.size == 1:
            return lesson.losses, lesson.overlaps.double()
        places = lesson.places.clone()
        self.team.add([places])
        shares = lesson.places / places.clamp(min=1)
        losses = [loss * float(share) for loss, share in zip(lesson.losses, shares, strict=True)]
        return losses, lesson.overlaps.double() * shares.to(lesson.overlaps.device)

    def _teach(self, texts: StoredTexts, batch: list[int], progress: float) -> Lesson:
        mine = slice(self.team.rank, None, self.team.size)
        if progress < self.on_policy_from:
            return self.classroom.read_texts(texts, batch[mine])
        generator = torch.Generator().manual_seed(hash((self.options.seed, self.state["batches"])) % 2**62)
        return self.classroom.read_beams(texts, batch[mine], spread_roots(texts.spans(batch), generator)[mine])

    def _step(self, progress: float) -> Tensor:
        """Change the weights; returns the largest norm that the gradients of a draft had."""
        norms = []
        for draft, optimizer in zip(self.drafts, self._optimizers, strict=True):
            self._add_gradients(draft)
            norms.append(torch.nn.utils.clip_grad_norm_(draft.parameters(), _LARGEST_GRADIENT))
            for group in optimizer.param_groups:
                group["lr"] = self.options.learning_rate * rate_factor(progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack(norms).max()

    def _add_gradients(self, draft: Any) -> None:
        """Sum the gradients of all processes, each of which has seen its own texts of the batch."""
        if self.team.size == 1:
            return
        for weight in draft.parameters():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        self.team.add(weight.grad for weight in draft.parameters() if weight.grad is not None)

    def _check(self, value: float, what: str, batch: int) -> None:
        """Raise at the first bad number, before it reaches a checkpoint; the last one stays."""
        if not math.isfinite(value):
            raise DistillError(
                f"the {what} became {value} at batch {batch}, expected a number; the last good "
                f"checkpoint ({self._file}) is kept, run the same command again with a lower --learning-rate"
            )

    def save(self) -> None:
        """Write a checkpoint in one step, from the leading process.

        Raises:
            DistillError: It cannot be written; the one before is still there.
        """
        self.team.lead(self._write)

    def _write(self) -> None:
        document = {
            "state": dict(self.state),
            "drafts": [draft.state_dict() for draft in self.drafts],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        partial = self._file.with_name(self._file.name + ".partial")
        with disk_errors(self.work.path):
            with partial.open("wb") as file:
                torch.save(document, file)
                sync(file)
            partial.replace(self._file)
        self.work.write(STAGE, dict(self.state))

    def _resume(self) -> None:
        if self.team.lead(self._file.exists):
            document = torch.load(self._file, map_location=self.classroom.device, weights_only=True)
            self.state = document["state"]
            for draft, weights in zip(self.drafts, document["drafts"], strict=True):
                draft.load_state_dict(weights)
            for optimizer, state in zip(self._optimizers, document["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        else:
            self.save()


def _optimizer(draft: Any, options: DistillOptions) -> torch.optim.AdamW:
    matrices = [weight for weight in draft.parameters() if weight.dim() > 1]
    vectors = [weight for weight in draft.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    is_fused = draft.get_input_embeddings().weight.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=_BETAS, foreach=not is_fused, fused=is_fused)
