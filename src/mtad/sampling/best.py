"""The largest logits of a wide vocabulary."""

import torch
from torch import Tensor

_BLOCKS = (256, 128, 64)


def best_logits(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest `count` logits in falling order and their tokens, as `torch.topk` gives them.

    On the CPU, where `topk` copies whole rows, blocks of the vocabulary whose largest logit is too small are left out
    first: the best of all lie in the blocks of the best largest ones. Of equal logits at the border, others may be
    chosen than `topk` chooses from the whole row, always the same for the same row.

    Args:
        logits: `[..., vocab]`.
        count: How many, at most `vocab`.

    Returns:
        Values and token ids, `[..., count]` each.
    """
    vocab_size = logits.shape[-1]
    block = next((size for size in _BLOCKS if vocab_size % size == 0 and vocab_size >= 4 * size * count), None)
    if logits.device.type != "cpu" or block is None:
        values, token_ids = logits.topk(count, dim=-1)
        return values, token_ids
    blocks = logits.unflatten(-1, (vocab_size // block, block))  # type: ignore[no-untyped-call]
    chosen = blocks.amax(-1).topk(count, dim=-1, sorted=False).indices
    token_ids = (chosen.unsqueeze(-1) * block + torch.arange(block)).flatten(-2)
    values, places = logits.gather(-1, token_ids).topk(count, dim=-1)
    return values, token_ids.gather(-1, places)
