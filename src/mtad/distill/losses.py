"""Losses on the target's whole distribution, a chunk of tokens at a time, with gradients of our own.

Autograd would keep several float32 tensors of `[tokens, vocab]`. Here every chunk's gradients with respect to the
hidden states and the output head are computed at once, and the chunk's logits are forgotten. On CUDA one kernel
compares whole rows of logits in their own dtype, so that chunks can be large.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtad.distill.fast_losses import compare_in_place, compares_fast

CHUNK_ENTRIES = 2**24
"""Logits held at once: tokens of a chunk times vocabulary."""
FAST_CHUNK_ENTRIES = 2**30
"""The same on CUDA: 2 GB of the target's and 2 GB of a draft's in 16 bits."""

TargetLogits = Callable[[int, int], Tensor]
"""The target's logits of tokens `start` to `end`, `[end - start, vocab]`, any float dtype."""


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """One chunk's sums over its tokens, and the gradient.

    Attributes:
        loss: Scalar, in nats for `kl` and `acceptance`.
        overlap: Scalar, sum of sum(min(p, q)).
        gradient: Of the loss with respect to the draft's logits, `[tokens, vocab]`.
    """

    loss: Tensor
    overlap: Tensor
    gradient: Tensor


def compare(target_log_probs: Tensor, logits: Tensor, loss: str, *, is_whole: bool = True) -> ChunkResult:
    """Loss, overlap and gradient of one chunk.

    `kl` is sum p (log p - log q); `tv` is 1 - sum min(p, q); `acceptance` is -log sum min(p, q), whose gradient does
    not fade where both hardly meet. All sums run over the tokens that the draft has.

    Args:
        target_log_probs: Natural logs, `[tokens, vocab]`.
        logits: The draft's, same shape and dtype; overwritten.
        loss: `kl`, `tv` or `acceptance`.
        is_whole: Whether these tokens hold all of the target's mass.
    """
    log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
    p, q = target_log_probs.exp(), log_q.exp()
    overlap = torch.minimum(p, q).sum(-1)
    if loss == "kl":
        value = (p * (target_log_probs.clamp(min=-1e4) - log_q)).sum()
        return ChunkResult(value, overlap.sum(), (q if is_whole else q.mul_(p.sum(-1, keepdim=True))).sub_(p))
    inside = (q < p) * q
    gradient = q.mul_(inside.sum(-1, keepdim=True)).sub_(inside)
    if loss == "tv":
        return ChunkResult((1 - overlap).sum(), overlap.sum(), gradient)
    floor = overlap.clamp(min=torch.finfo(overlap.dtype).tiny)
    return ChunkResult(-floor.log().sum(), overlap.sum(), gradient.div_(floor.unsqueeze(-1)))


@dataclass(frozen=True, slots=True)
class _Task:
    """What `fused_loss` was asked for."""

    target_logits: TargetLogits
    loss: str
    chunk: int
    columns: Tensor | None
    wants_gradients: bool
    is_fast: bool

    def compare(self, target: Tensor, logits: Tensor, count: int) -> ChunkResult:
        """One chunk of one draft; the gradient is already divided by the number of all tokens.

        Args:
            target: What `read_target` gave.
            logits: The draft's, overwritten.
            count: Tokens of all chunks.
        """
        if self.is_fast:
            factor = 1 / count if self.wants_gradients else None
            loss, overlap = compare_in_place(target, logits, self.loss, self.columns, factor)
            return ChunkResult(loss, overlap, logits)
        result = compare(target, logits.to(target.dtype), self.loss, is_whole=self.columns is None)
        return ChunkResult(result.loss, result.overlap, result.gradient.div_(count))

    def read_target(self, start: int, end: int, wide: torch.dtype) -> Tensor:
        """The target's logits as they are, or its log-probabilities of the draft's tokens."""
        logits = self.target_logits(start, end)
        if self.is_fast:
            return logits
        log_probs = logits.to(wide).log_softmax(-1)
        return log_probs if self.columns is None else log_probs.index_select(-1, self.columns)


class _FusedLoss(torch.autograd.Function):
    """Mean loss and overlap of several drafts against one target, with their gradients computed on the way."""

    @staticmethod
    def forward(ctx: Any, task: _Task, *pairs: Tensor) -> tuple[Tensor, ...]:
        hiddens, heads = pairs[0::2], pairs[1::2]
        count = len(hiddens[0])
        wide = torch.promote_types(heads[0].dtype, torch.float32)
        gradients = [
            (torch.zeros_like(hidden), torch.zeros_like(head)) for hidden, head in zip(hiddens, heads, strict=True)
        ]
        sums = torch.zeros(2, len(hiddens), dtype=wide, device=hiddens[0].device)
        narrow = [head.to(hidden.dtype) for hidden, head in zip(hiddens, heads, strict=True)]
        for start in range(0, count, task.chunk):
            end = min(start + task.chunk, count)
            target = task.read_target(start, end, wide)
            for index, hidden in enumerate(hiddens):
                part = hidden[start:end]
                result = task.compare(target, part @ narrow[index].T, count)
                sums[0, index] += result.loss
                sums[1, index] += result.overlap
                if task.wants_gradients:
                    scaled = result.gradient.to(hidden.dtype)
                    gradients[index][0][start:end] = scaled @ narrow[index]
                    gradients[index][1].add_(scaled.T @ part)
        ctx.save_for_backward(*(item for pair in gradients for item in pair))
        means = sums / count
        overlaps = means[1].clone()
        ctx.mark_non_differentiable(overlaps)
        return (*means[0].unbind(), overlaps)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        scaled = [item * outer[index // 2] for index, item in enumerate(saved)]
        return (None, *scaled)


def fused_loss(
    target_logits: TargetLogits,
    drafts: Sequence[tuple[Tensor, Tensor]],
    loss: str,
    chunk: int | None = None,
    columns: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Mean loss of every draft over the tokens; the target's distribution is computed once for all.

    Where gradients are not wanted at the moment, as under `torch.no_grad()`, none are computed.

    Args:
        target_logits: Gives the target's logits of a range of tokens.
        drafts: Last hidden states `[tokens, hidden]` and output head `[vocab, hidden]` of each; gradients reach both.
            The product is made in the dtype of the hidden states, everything behind it in at least float32.
        loss: `kl`, `tv` or `acceptance`.
        chunk: Tokens at a time; so many that `CHUNK_ENTRIES` logits are held when not given, on CUDA
            `FAST_CHUNK_ENTRIES`.
        columns: The target's id of every token that the drafts have, `[draft_vocab]` int64; None means all.

    Returns:
        One scalar loss per draft, and the overlaps, `[drafts]`, without gradient.
    """
    is_fast = compares_fast(drafts[0][0])
    count, vocab_size = len(drafts[0][0]), len(drafts[0][1])
    chunk = chunk or _chunk(count, vocab_size, FAST_CHUNK_ENTRIES if is_fast else CHUNK_ENTRIES, is_even=is_fast)
    task = _Task(target_logits, loss, chunk, columns, torch.is_grad_enabled(), is_fast)
    flat = [tensor for pair in drafts for tensor in pair]
    *losses, overlaps = _FusedLoss.apply(task, *flat)  # type: ignore[no-untyped-call]
    return losses, overlaps


def _chunk(count: int, vocab_size: int, entries: int, *, is_even: bool) -> int:
    """Tokens of a chunk; even ones leave no small rest at the end."""
    most = max(entries // vocab_size, 16)
    return -(-count // -(-count // most)) if is_even and count else most
