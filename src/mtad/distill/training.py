"""The training loop: checkpoints, a learning rate that honours a time budget, and a stop at the first bad number."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtad.config import DistillOptions
from mtad.distill.losses import fused_loss
from mtad.distill.sampling import Note
from mtad.distill.store import StoredTexts
from mtad.distill.teacher import Teacher, last_hidden
from mtad.distill.work import WorkFolder, disk_errors, sync, training_memory_errors
from mtad.errors import DistillError
from mtad.models.placement import has_native_bfloat16

STAGE = "train"
EVALUATION_SHARE = 0.08
"""Of a time budget."""
CHECKPOINT_S = 60.0
_WARMUP_SHARE, _LAST_RATE = 0.02, 0.02
_POOL_BATCHES = 32
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
    lengths = texts.lengths
    mean = max(float(np.mean(lengths)), 1.0)
    pool = max(int(_POOL_BATCHES * batch_tokens / mean), 1)
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), pool):
        batch: list[int] = []
        for number in sorted(shuffled[start : start + pool], key=lambda item: int(lengths[item])):
            if batch and (len(batch) + 1) * int(lengths[number]) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(number)
        batches.append(batch)
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
        teacher: The target.
        drafts: Models in float32, trained in place.
        options: Loss, batches, rates.
        work: Where checkpoints go.
        checkpoint_s: Seconds between them.
    """

    def __init__(
        self,
        teacher: Teacher,
        drafts: Sequence[Any],
        options: DistillOptions,
        work: WorkFolder,
        *,
        checkpoint_s: float = CHECKPOINT_S,
    ) -> None:
        self.checkpoint_s = checkpoint_s
        self.teacher, self.drafts, self.options, self.work = teacher, list(drafts), options, work
        self.device = drafts[0].get_input_embeddings().weight.device
        self._optimizers = [_optimizer(draft, options) for draft in self.drafts]
        self.state: dict[str, Any] = {"batches": 0, "tokens": 0, "seconds": 0.0, "is_finished": False}
        self._file = work.path / "checkpoint.pt"

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
            started = time.perf_counter()
            epoch, batches, place = self._locate(texts, numbers)
            progress = self._progress(epoch, place, len(batches), seconds)
            if progress < 1:
                with training_memory_errors():
                    overlaps = self._train_batch(texts, batches[place], progress, is_step=self._is_step())
                self.state["batches"] += 1
                self.state["tokens"] += int(texts.lengths[batches[place]].sum())
                rate = self.state["tokens"] / max(self.state["seconds"], 1e-9)
                note("train", progress, f"overlap {'/'.join(f'{item:.3f}' for item in overlaps)}, {rate:.0f} tokens/s")
            self.state["seconds"] += time.perf_counter() - started
            self.state["is_finished"] = progress >= 1
            is_due = time.perf_counter() - saved > self.checkpoint_s
            if progress >= 1 or (is_due and self.state["batches"] % self.options.accumulation == 0):
                self.save()
                saved = time.perf_counter()
        note("train", 1.0, "")

    def _locate(self, texts: StoredTexts, numbers: Sequence[int]) -> tuple[int, list[list[int]], int]:
        """The epoch, its batches and the next of them, from the number of batches done."""
        epoch, done = 0, self.state["batches"]
        while True:
            batches = self._epoch(texts, numbers, epoch)
            if done < len(batches):
                return epoch, batches, done
            done -= len(batches)
            epoch += 1

    def _epoch(self, texts: StoredTexts, numbers: Sequence[int], epoch: int) -> list[list[int]]:
        kept: tuple[int, list[list[int]]] | None = getattr(self, "_kept_epoch", None)
        if kept is None or kept[0] != epoch:
            seed = f"{self.options.seed} {epoch}"
            kept = (epoch, order_batches(texts, numbers, self.options.batch_tokens, seed))
            self._kept_epoch = kept
        return kept[1]

    def _progress(self, epoch: int, place: int, num_batches: int, seconds: float | None) -> float:
        if seconds is not None:
            # With a time budget the passes are not counted: more of them are better than idle time.
            return float(self.state["seconds"] / max(seconds, 1e-9))
        return (epoch + place / num_batches) / self.options.epochs

    def _is_step(self) -> bool:
        return bool((self.state["batches"] + 1) % self.options.accumulation == 0)

    def _train_batch(self, texts: StoredTexts, batch: list[int], progress: float, *, is_step: bool) -> list[float]:
        tokens, places = texts.pad(batch, self.device)
        encoded = self.teacher.encode(tokens, places)
        with _narrow(self.device, self.drafts[0]):
            hiddens = [last_hidden(draft, tokens).flatten(0, 1)[places] for draft in self.drafts]
        width = self.teacher.vocab_size
        pairs = [
            (_narrowed(hidden, self.device), draft.get_output_embeddings().weight[:width])
            for hidden, draft in zip(hiddens, self.drafts, strict=True)
        ]
        losses, overlaps = fused_loss(lambda a, b: self.teacher.logits(encoded[a:b]), pairs, self.options.loss)
        total = torch.stack(losses).sum() / self.options.accumulation
        self._check(float(total.detach()), "loss")
        total.backward()  # type: ignore[no-untyped-call]
        if is_step:
            self._step(progress)
        found: list[float] = overlaps.tolist()
        return found

    def _step(self, progress: float) -> None:
        for draft, optimizer in zip(self.drafts, self._optimizers, strict=True):
            self._check(float(torch.nn.utils.clip_grad_norm_(draft.parameters(), _LARGEST_GRADIENT)), "gradient")
            for group in optimizer.param_groups:
                group["lr"] = self.options.learning_rate * rate_factor(progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _check(self, value: float, what: str) -> None:
        """Raise at the first bad number, before it reaches the weights; the last checkpoint stays."""
        if not math.isfinite(value):
            raise DistillError(
                f"the {what} became {value} at batch {self.state['batches'] + 1}, expected a number; the last good "
                f"checkpoint ({self._file}) is kept, run the same command again with a lower --learning-rate"
            )

    def save(self) -> None:
        """Write a checkpoint in one step.

        Raises:
            DistillError: It cannot be written; the one before is still there.
        """
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
        if self._file.exists():
            document = torch.load(self._file, map_location=self.device, weights_only=True)
            self.state = document["state"]
            for draft, weights in zip(self.drafts, document["drafts"], strict=True):
                draft.load_state_dict(weights)
            for optimizer, state in zip(self._optimizers, document["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        else:
            self.save()


@torch.no_grad()
def measure_overlap(teacher: Teacher, drafts: Sequence[Any], texts: StoredTexts, numbers: Sequence[int]) -> list[float]:
    """Mean over the answers' places of sum(min(p, q)) at temperature 1, unfiltered, for every draft.

    Args:
        teacher: The target.
        drafts: Models with the target's vocabulary.
        texts: Sampled text.
        numbers: The held-out texts.
    """
    device = drafts[0].get_input_embeddings().weight.device
    sums, count = torch.zeros(len(drafts), dtype=torch.float64), 0
    for number in numbers:
        tokens, places = texts.pad([number], device)
        encoded = teacher.encode(tokens, places)
        pairs = [
            (
                last_hidden(draft, tokens).flatten(0, 1)[places],
                draft.get_output_embeddings().weight[: teacher.vocab_size],
            )
            for draft in drafts
        ]
        _, overlaps = fused_loss(lambda a, b, kept=encoded: teacher.logits(kept[a:b]), pairs, "kl")  # type: ignore[misc]
        sums += overlaps.double().cpu() * len(places)
        count += len(places)
    return [float(item) / max(count, 1) for item in sums]


def _optimizer(draft: Any, options: DistillOptions) -> torch.optim.AdamW:
    matrices = [weight for weight in draft.parameters() if weight.dim() > 1]
    vectors = [weight for weight in draft.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=_BETAS, foreach=True)


def _uses_bfloat16(device: torch.device, dtype: torch.dtype) -> bool:
    has_products = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_native_bfloat16()
    return dtype == torch.float32 and has_products


def _narrow(device: torch.device, draft: Any) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the device multiplies it natively."""
    if not _uses_bfloat16(device, draft.dtype):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _narrowed(hidden: Tensor, device: torch.device) -> Tensor:
    return hidden.to(torch.bfloat16) if _uses_bfloat16(device, hidden.dtype) else hidden
