"""Temperature, then top-k, top-p and min-p: the same warp for target and draft."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtad.sampling.best import best_logits
from mtad.sampling.nucleus import filter_unsorted
from mtad.structures.between_calls import between_calls, is_traced
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls

_FIRST_LOOK = 256
_NEXT_LOOK = 16


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that survive a warp, most likely first.

    Attributes:
        log_probs: Natural log, normalised over all survivors, `[batch, ..., kept]`; -inf where filtered out.
        token_ids: `[batch, ..., kept]` int64.
        vocab_size: Size of the vocabulary the candidates come from.
    """

    log_probs: Tensor
    token_ids: Tensor
    vocab_size: int

    def dense(self) -> Tensor:
        """Spread over the vocabulary, `[batch, ..., vocab]`, -inf where filtered out."""
        shape = (*self.log_probs.shape[:-1], self.vocab_size)
        full = torch.full(shape, -torch.inf, dtype=self.log_probs.dtype, device=self.log_probs.device)
        return full.scatter_(-1, self.token_ids, self.log_probs)


@between_calls
def warp_logits(logits: Tensor, rows: RowControls) -> Tensor:
    """Warped log-probabilities over the whole vocabulary.

    Args:
        logits: `[batch, ..., vocab]`, any float type.
        rows: The rows' temperatures and filters.

    Returns:
        Natural log, normalised, `[batch, ..., vocab]` float32 (float64 for float64 logits); -inf where filtered.
    """
    if not rows.has_top_p and not rows.has_some_top_k and not rows.has_min_p:
        return (upcast(logits) / _per_row(rows.temperatures, logits)).log_softmax(-1)
    if _stays_unsorted(logits, rows):
        return filter_unsorted(logits, upcast(logits) / _per_row(rows.temperatures, logits), rows)
    return warp_candidates(logits, rows).dense()


def warp_candidates(logits: Tensor, rows: RowControls, num_best: int | None = None) -> Candidates:
    """Warped log-probabilities of the tokens worth looking at.

    Args:
        logits: `[batch, ..., vocab]`, any float type.
        rows: The rows' temperatures and filters.
        num_best: Return only so many of the best; None returns every token that can survive.

    Returns:
        Survivors in falling order. Ties at the border of top-k are cut as `best_logits` orders them, so that
        the kept mass is exactly one.
    """
    vocab_size = logits.shape[-1]
    wanted = vocab_size if num_best is None else min(num_best, vocab_size)
    has_filter = rows.has_top_p or rows.has_some_top_k or rows.has_min_p
    if has_filter and not rows.has_some_top_k:
        if num_best is not None and _stays_unsorted(logits, rows):
            return Candidates(*warp_logits(logits, rows).topk(wanted, dim=-1), vocab_size)
        if logits.device.type == "cpu" and not is_traced():
            return _first_survivors(logits, rows, wanted)
    kept = min(rows.max_top_k, vocab_size) or (vocab_size if has_filter else wanted)
    values, token_ids = best_logits(logits, kept)
    scores = upcast(values) / _per_row(rows.temperatures, logits)
    if rows.max_top_k == 0 and kept < vocab_size:
        normaliser = (upcast(logits) / _per_row(rows.temperatures, logits)).logsumexp(-1, keepdim=True)
        return Candidates(scores - normaliser, token_ids, vocab_size)
    log_probs = _filter_sorted(scores, rows)
    return Candidates(log_probs[..., :wanted], token_ids[..., :wanted], vocab_size)


def _stays_unsorted(logits: Tensor, rows: RowControls) -> bool:
    """Whether filters are applied in place: sorting costs an accelerator more than looking for a border."""
    return logits.device.type != "cpu" and not rows.has_some_top_k and logits.dtype != torch.float64


def _first_survivors(logits: Tensor, rows: RowControls, wanted: int) -> Candidates:
    """Top-p and min-p on as many of the best tokens as it takes until a filtered one is among them, everywhere."""
    vocab_size = logits.shape[-1]
    temperatures = _per_row(rows.temperatures, logits)
    normaliser = (upcast(logits) / temperatures).logsumexp(-1, keepdim=True)
    count = _FIRST_LOOK
    while True:
        count = min(count, vocab_size)
        values, token_ids = logits.topk(count, dim=-1)
        log_probs = _filter_sorted(upcast(values) / temperatures, rows, normaliser)
        if count == vocab_size or bool((log_probs[..., -1] == -torch.inf).all()):
            return Candidates(log_probs[..., :wanted], token_ids[..., :wanted], vocab_size)
        count *= _NEXT_LOOK


def _filter_sorted(scores: Tensor, rows: RowControls, normaliser: Tensor | None = None) -> Tensor:
    """Top-k, then top-p, then min-p (Nguyen et al. 2024), then normalisation, on scores in falling order.

    The normaliser, natural log, is that of all tokens, where `scores` holds only the best of them.
    """
    if rows.has_mixed_top_k:
        top_ks = _per_row(rows.top_ks, scores)
        ranks = first_numbers(scores.shape[-1], scores.device)
        scores = scores.masked_fill((ranks >= top_ks) & (top_ks > 0), -torch.inf)
    if rows.has_top_p:
        probs = scores.softmax(-1) if normaliser is None else (scores - normaliser).exp()
        mass_before = probs.cumsum(-1) - probs
        top_ps = _per_row(rows.top_ps, scores)
        # No mass lies before the first token, so it stays.
        outside = mass_before >= top_ps
        if rows.has_full_top_p:
            outside = outside & (top_ps < 1)
        scores = scores.masked_fill(outside, -torch.inf)
    if rows.has_min_p:
        scores = scores.masked_fill(scores - scores[..., :1] < _per_row(rows.min_ps, scores).log(), -torch.inf)
    return scores.log_softmax(-1)


def upcast(logits: Tensor) -> Tensor:
    """Scores in which small differences count: float32, or float64 where the logits are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """Reshape `[batch]` to broadcast over `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
