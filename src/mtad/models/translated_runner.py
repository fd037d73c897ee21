"""A draft with a vocabulary of its own, driven by the target's token ids."""

from dataclasses import replace

import torch
from torch import Tensor

from mtad.models.forward import ForwardBatch
from mtad.models.intersection import VocabularyMap
from mtad.models.runner import ModelRunner
from mtad.models.wrapped_runner import WrappedRunner


class TranslatedRunner(WrappedRunner):
    """Speaks the target's vocabulary outwards and the draft's inwards, one slot per target token.

    Token-level intersection (Timor et al., ICML 2025, algorithm 4): tokens that only one vocabulary has get no
    probability, so the warped logits are the draft's law restricted to the shared tokens and normalised. Lossless
    rules stay lossless under any draft law, and joint rules keep their guarantee with this law as Q.

    Args:
        inner: The draft; used by nobody else meanwhile.
        vocabulary: The pairs of tokens.
    """

    def __init__(self, inner: ModelRunner, vocabulary: VocabularyMap) -> None:
        super().__init__(inner, vocab_size=len(vocabulary.draft_ids))
        draft_ids = vocabulary.draft_ids.to(inner.device)
        self._fed_ids = vocabulary.fed_ids.to(inner.device)
        self._shared = (draft_ids >= 0).nonzero().squeeze(1)
        columns = draft_ids[self._shared]
        is_in_order = torch.equal(columns, torch.arange(inner.vocab_size, device=inner.device))
        self._columns = None if is_in_order else columns

    def forward(self, batch: ForwardBatch) -> Tensor:
        """See `ModelRunner.forward`; -inf for tokens the draft does not have."""
        logits = self.inner.forward(replace(batch, tokens=self._fed_ids[batch.tokens]))
        # Selecting in the last of several dimensions is slow on the CPU; gathering and copying there is not.
        if self._columns is not None:
            logits = logits.gather(-1, self._columns.expand(*logits.shape[:-1], -1))
        whole = logits.new_full((*logits.shape[:-1], self.vocab_size), -torch.inf)
        return whole.index_copy_(-1, self._shared, logits)
