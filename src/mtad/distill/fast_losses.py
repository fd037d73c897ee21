"""The comparison of target and draft on CUDA: one kernel over whole rows of logits."""

from importlib.util import find_spec

import torch
from torch import Tensor

from mtad.models.kernels.launch import power_of_two

_LARGEST_BLOCK = 4096
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def compares_fast(states: Tensor) -> bool:
    """Whether the kernel serves drafts with such hidden states, on their device."""
    return states.is_cuda and states.dtype in _DTYPES and find_spec("triton") is not None


def compare_in_place(
    target: Tensor, logits: Tensor, loss: str, columns: Tensor | None, factor: float | None
) -> tuple[Tensor, Tensor]:
    """Sums of loss and overlap over the rows, as `losses.compare` defines them, in float32.

    Args:
        target: The target's logits, `[tokens, target_vocab]`, rows contiguous.
        logits: The draft's, `[tokens, vocab]`, contiguous; `factor` times the gradient takes their place.
        loss: `kl`, `tv` or `acceptance`.
        columns: The target's id of every token that the draft has, `[vocab]` int64; None means all.
        factor: None leaves the logits as they are.
    """
    from mtad.distill.kernels.comparison import compare_rows

    shared = target if columns is None else target.index_select(-1, columns)
    rows, width = logits.shape
    losses, overlaps = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        compare_rows[(rows,)](
            target,
            shared,
            logits,
            losses,
            overlaps,
            target.stride(0),
            shared.stride(0),
            logits.stride(0),
            0.0 if factor is None else factor,
            TARGET_WIDTH=target.shape[1],
            WIDTH=width,
            LOSS=loss,
            IS_WHOLE=columns is None,
            HAS_GRADIENT=factor is not None,
            BLOCK=min(power_of_two(max(target.shape[1], width)), _LARGEST_BLOCK),
            num_warps=8,
        )
    return losses.sum(), overlaps.sum()
