"""Distributions over a vocabulary become short lists, and come back over the few tokens that occur."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtad.results.trace_format import Array

NUM_LISTED = 64
"""A distribution of no more tokens is listed in full, of a wider one the most likely ones."""


@dataclass(frozen=True, slots=True)
class SparseLaws:
    """Distributions as lists of entries in the order of the vocabulary.

    An entry is a token, or stands for the unlisted tokens between two listed ones: -1 - k for those below the listed
    token k, -1 - vocabulary size for those above the last. So a number drawn from [0, 1) still finds its token, if
    that one is listed.

    Attributes:
        counts: Entries of each distribution, `[rows, places]` int64.
        entries: Token ids and marks of unlisted tokens, `[entries]` int64.
        log_probs: Natural log of each entry's mass, `[entries]` float.
        unwarped: Unwarped natural log-probability of each token, for unlisted ones their mean, `[entries]` float.
    """

    counts: Array
    entries: Array
    log_probs: Array
    unwarped: Array


def list_laws(log_probs: Tensor, logits: Tensor, always: Tensor, is_greedy: Tensor) -> SparseLaws:
    """List distributions.

    Args:
        log_probs: Warped natural logs, `[rows, places, vocab]`.
        logits: The unwarped scores of the same, `[rows, places, vocab]`.
        always: Tokens that are listed wherever they have mass, `[rows, some]` int64.
        is_greedy: Rows in which nothing is drawn: all their unlisted tokens go into one entry, `[rows]` bool.
    """
    support = log_probs > -torch.inf
    is_wide = (_count(support) > NUM_LISTED).unsqueeze(-1)
    has_wide = bool(is_wide.any())
    listed = _choose(log_probs, support, always, is_wide) if has_wide else support
    rows, places, tokens = listed.nonzero(as_tuple=True)
    scores = logits if logits.dtype == torch.float64 else logits.float()
    normalisers = scores.logsumexp(-1)
    laws = SparseLaws(
        counts=_count(listed).cpu().numpy(),
        entries=tokens.cpu().numpy(),
        log_probs=log_probs[rows, places, tokens].cpu().numpy(),
        unwarped=(scores[rows, places, tokens] - normalisers[rows, places]).cpu().numpy(),
    )
    return _with_gaps(laws, _gaps(laws, log_probs, scores, normalisers, listed), is_greedy) if has_wide else laws


def _count(flags: Tensor) -> Tensor:
    """How many of `[rows, places, vocab]` are true, `[rows, places]`; a plain sum would copy them as int64 first."""
    return flags.view(torch.uint8).sum(-1, dtype=torch.int32)


def _choose(log_probs: Tensor, support: Tensor, always: Tensor, is_wide: Tensor) -> Tensor:
    """Which tokens are listed, `[rows, places, vocab]` bool."""
    chosen = torch.zeros_like(support).scatter_(-1, log_probs.topk(NUM_LISTED, dim=-1).indices, True)
    chosen = chosen.scatter_(-1, always.unsqueeze(1).expand(-1, support.shape[1], -1), True)
    return support & (chosen | ~is_wide)


@dataclass(frozen=True, slots=True)
class _Gaps:
    """The unlisted tokens below each listed one, and above the last of each distribution; all `[gaps]`.

    Attributes:
        laws: Distribution of each gap, counted over rows and places.
        ends: Token above each gap.
        masses: Linear mass in each gap.
        weighted: Sum of mass times unwarped log-probability.
    """

    laws: Array
    ends: Array
    masses: Array
    weighted: Array


def _gaps(laws: SparseLaws, log_probs: Tensor, scores: Tensor, normalisers: Tensor, listed: Tensor) -> _Gaps:
    counts, vocab_size = laws.counts.ravel(), log_probs.shape[-1]
    last = np.cumsum(counts)
    law_of = np.insert(np.repeat(np.arange(len(counts)), counts), last, np.arange(len(counts)))
    ends = np.insert(laws.entries, last, vocab_size)
    starts = np.where(np.diff(law_of, prepend=-1) > 0, 0, np.roll(ends, 1))
    lengths = torch.from_numpy(ends - starts).to(log_probs.device)
    mass = log_probs.exp().masked_fill_(listed, 0.0).double().flatten()
    masses = torch.segment_reduce(mass, "sum", lengths=lengths)
    finite = scores.clamp(min=torch.finfo(scores.dtype).min).flatten()
    shift = normalisers.flatten().double()[torch.from_numpy(law_of).to(log_probs.device)]
    weighted = torch.segment_reduce(mass.mul_(finite), "sum", lengths=lengths) - masses * shift
    return _Gaps(law_of, ends, masses.cpu().numpy(), weighted.cpu().numpy())


def _with_gaps(laws: SparseLaws, gaps: _Gaps, is_greedy: Tensor) -> SparseLaws:
    """Put in the entries of unlisted tokens."""
    num_laws = laws.counts.size
    is_drawn = ~np.repeat(is_greedy.cpu().numpy(), laws.counts.shape[1])[gaps.laws]
    is_last = np.diff(gaps.laws, append=num_laws) > 0
    masses, weighted = (
        np.where(is_drawn, part, np.where(is_last, np.bincount(gaps.laws, part)[gaps.laws], 0.0))
        for part in (gaps.masses, gaps.weighted)
    )
    filled = masses > 0
    entries = np.concatenate([laws.entries, -1 - gaps.ends[filled]])
    law = np.concatenate([np.repeat(np.arange(num_laws), laws.counts.ravel()), gaps.laws[filled]])
    order = np.lexsort((sort_keys(entries), law))
    log_probs = np.log(masses[filled]).astype(laws.log_probs.dtype)
    unwarped = (weighted[filled] / masses[filled]).astype(laws.unwarped.dtype)
    return SparseLaws(
        counts=np.bincount(law, minlength=num_laws).reshape(laws.counts.shape),
        entries=entries[order],
        log_probs=np.concatenate([laws.log_probs, log_probs])[order],
        unwarped=np.concatenate([laws.unwarped, unwarped])[order],
    )


def sort_keys(entries: Array) -> Array:
    """Numbers that order tokens by id, and the mark of unlisted tokens right below its token."""
    wide = entries.astype(np.int64)
    keys: Array = np.where(wide >= 0, 2 * wide + 1, 2 * (-1 - wide))
    return keys


class ReducedVocabulary:
    """The entries that occur in each step, numbered in the order of the vocabulary.

    Categories keep their order and lose only such as have no mass, so a draw by inverting the cumulative
    distribution finds the same token as over the whole vocabulary.

    Args:
        keys: Sort keys that occur, `[occurrences]` int64.
        steps: Step of each occurrence, `[occurrences]` integers.
        num_steps: Steps.

    Attributes:
        size: Entries of the step that has most, and one.
        token_ids: Token of every number, -1 for unlisted tokens and unused numbers, `[steps, size]` int64.
    """

    def __init__(self, keys: Array, steps: Array, num_steps: int) -> None:
        self._stride = int(keys.max(initial=0)) + 1
        self._known = np.unique(steps.astype(np.int64) * self._stride + keys)
        step_of = self._known // self._stride
        self._first = np.searchsorted(step_of, np.arange(num_steps))
        numbers = np.arange(len(self._known)) - self._first[step_of]
        # The last number stays unused.
        self.size = int(numbers.max(initial=0)) + 2
        self.token_ids = np.full((num_steps, self.size), -1, dtype=np.int64)
        known_keys = self._known % self._stride
        self.token_ids[step_of, numbers] = np.where(known_keys % 2 == 1, known_keys // 2, -1)

    def numbers(self, keys: Array, steps: Array) -> Array:
        """Number of each key in the vocabulary of its step; every key must have been told at the start."""
        places: Array = np.searchsorted(self._known, steps.astype(np.int64) * self._stride + keys)
        numbers: Array = places - self._first[steps]
        return numbers
