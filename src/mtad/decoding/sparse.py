"""Distributions over a vocabulary become short lists, and come back over the few tokens that occur."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtad.results.trace_format import Array

NUM_LISTED = 64
"""A distribution of no more tokens is listed in full, of a wider one the most likely ones."""

_SMALLEST_MASS = 1e-12


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
    listed = _choose(log_probs, support, always)
    rows, places, tokens = listed.nonzero(as_tuple=True)
    scores = logits if logits.dtype == torch.float64 else logits.float()
    normalisers = scores.logsumexp(-1)
    laws = SparseLaws(
        counts=listed.sum(-1).cpu().numpy(),
        entries=tokens.cpu().numpy(),
        log_probs=log_probs[listed].cpu().numpy(),
        unwarped=(scores[listed] - normalisers[rows, places]).cpu().numpy(),
    )
    rest = support & ~listed
    if not rest.any():
        return laws
    masses = torch.where(rest, log_probs.double().exp(), 0.0)
    expected = masses * (scores.double() - normalisers.double().unsqueeze(-1))
    is_drawn = ~is_greedy[rows]
    below = [
        (total.cumsum(-1)[listed] * is_drawn, total.sum(-1)) for total in (masses, torch.where(rest, expected, 0.0))
    ]
    return _with_gaps(laws, [(part.cpu().numpy(), total.cpu().numpy()) for part, total in below], log_probs.shape[-1])


def _choose(log_probs: Tensor, support: Tensor, always: Tensor) -> Tensor:
    """Which tokens are listed, `[rows, places, vocab]` bool."""
    is_wide = support.sum(-1, keepdim=True) > NUM_LISTED
    if not is_wide.any():
        return support
    chosen = torch.zeros_like(support).scatter_(-1, log_probs.topk(NUM_LISTED, dim=-1).indices, True)
    chosen = chosen.scatter_(-1, always.unsqueeze(1).expand(-1, support.shape[1], -1), True)
    return support & (chosen | ~is_wide)


def _with_gaps(laws: SparseLaws, below: list[tuple[Array, Array]], vocab_size: int) -> SparseLaws:
    """Put in the entries of unlisted tokens.

    Args:
        laws: The listed tokens; every distribution has some.
        below: Mass, and mass times unwarped log-probability, of all unlisted tokens below each listed one
            `[entries]`, and of all of them `[rows, places]`.
        vocab_size: Size of the vocabulary.
    """
    counts = laws.counts.ravel()
    ends = np.cumsum(counts)
    law_of = np.repeat(np.arange(len(counts)), counts)
    # Behind the last token of a distribution stands one more place, for what lies above it.
    tokens = np.insert(laws.entries, ends, vocab_size)
    law_of_gap = np.insert(law_of, ends, np.arange(len(counts)))
    mass, expected = (_differences(np.insert(part, ends, total.ravel()), law_of_gap) for part, total in below)
    filled = mass > _SMALLEST_MASS
    entries = np.concatenate([laws.entries, -1 - tokens[filled]])
    law = np.concatenate([law_of, law_of_gap[filled]])
    order = np.lexsort((sort_keys(entries), law))
    log_probs = np.log(mass[filled]).astype(laws.log_probs.dtype)
    unwarped = (expected[filled] / mass[filled]).astype(laws.unwarped.dtype)
    return SparseLaws(
        counts=np.bincount(law, minlength=len(counts)).reshape(laws.counts.shape),
        entries=entries[order],
        log_probs=np.concatenate([laws.log_probs, log_probs])[order],
        unwarped=np.concatenate([laws.unwarped, unwarped])[order],
    )


def _differences(cumulative: Array, law: Array) -> Array:
    """Each number less the one before it in the same distribution."""
    before = np.concatenate([[0.0], cumulative[:-1]])
    is_first = np.concatenate([[True], law[1:] != law[:-1]])
    differences: Array = cumulative - np.where(is_first, 0.0, before)
    return differences


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
        size: Entries of the step that has most.
        token_ids: Token of every number, -1 for unlisted tokens and unused numbers, `[steps, size]` int64.
    """

    def __init__(self, keys: Array, steps: Array, num_steps: int) -> None:
        self._stride = int(keys.max(initial=0)) + 1
        self._known = np.unique(steps.astype(np.int64) * self._stride + keys)
        step_of = self._known // self._stride
        self._first = np.searchsorted(step_of, np.arange(num_steps))
        numbers = np.arange(len(self._known)) - self._first[step_of]
        self.size = int(numbers.max(initial=0)) + 1
        self.token_ids = np.full((num_steps, self.size), -1, dtype=np.int64)
        known_keys = self._known % self._stride
        self.token_ids[step_of, numbers] = np.where(known_keys % 2 == 1, known_keys // 2, -1)

    def numbers(self, keys: Array, steps: Array) -> Array:
        """Number of each key in the vocabulary of its step; every key must have been told at the start."""
        places: Array = np.searchsorted(self._known, steps.astype(np.int64) * self._stride + keys)
        numbers: Array = places - self._first[steps]
        return numbers
