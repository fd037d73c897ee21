"""What one batch teaches: the target's distributions at places of its texts, and at places of the draft's own beams."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtad.distill.beams import Layout, draw_beams
from mtad.distill.fast_llama import find_fast_llama
from mtad.distill.losses import fused_loss
from mtad.distill.store import StoredTexts
from mtad.distill.teacher import Teacher, read_places
from mtad.distill.vocabulary import read_as
from mtad.models.intersection import VocabularyMap
from mtad.models.low_rank_head import LowRankHead
from mtad.models.placement import has_native_bfloat16
from mtad.models.trimmed_vocabulary import kept_tokens

_MEASURED_TOKENS = 4096
"""Of one batch of held-out texts, padding included."""


@dataclass(slots=True)
class Lesson:
    """What a batch gave, by draft.

    Attributes:
        losses: Means over the places, one scalar each, with their graphs.
        overlaps: Means over the places, `[drafts]`.
        places: Their number, `[drafts]`.
    """

    losses: list[Tensor]
    overlaps: Tensor
    places: Tensor


class Classroom:
    """A teacher and its drafts.

    Args:
        teacher: The target.
        drafts: Models in at least float32.
        loss: `kl`, `tv` or `acceptance`.
        vocabulary: Where the drafts have some of the target's tokens only.
        eos_token_ids: Tokens that end the target's texts.
    """

    def __init__(
        self,
        teacher: Teacher,
        drafts: Sequence[Any],
        loss: str,
        *,
        vocabulary: VocabularyMap | None = None,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self.teacher, self.drafts, self.loss, self.vocabulary = teacher, list(drafts), loss, vocabulary
        self.device: torch.device = drafts[0].get_input_embeddings().weight.device
        self._ends = torch.tensor(sorted(eos_token_ids), dtype=torch.int64, device=self.device)
        self._fast = {id(draft): find_fast_llama(draft) for draft in self.drafts}
        self._columns = None if vocabulary is None else kept_tokens(vocabulary).to(self.device)

    def nothing(self) -> Lesson:
        """What a process gives that has no text of a batch."""
        zero = torch.zeros(len(self.drafts), device=self.device)
        return Lesson(list(zero), zero, torch.zeros(len(self.drafts), dtype=torch.float64))

    def read_texts(self, texts: StoredTexts, numbers: list[int]) -> Lesson:
        """The target's texts as they are; the target reads them once for all drafts."""
        tokens, places = texts.pad(numbers, self.device)
        return self._compare(self.drafts, tokens, places, None)

    def read_beams(self, texts: StoredTexts, numbers: list[int], roots: Tensor) -> Lesson:
        """The same texts, and every draft's own beams behind some of their places.

        Args:
            texts: Sampled text.
            numbers: Those of the batch.
            roots: The places, `[texts, trees]` int64.
        """
        tokens, places = texts.pad(numbers, self.device)
        found = []
        for draft in self.drafts:
            with narrow(self.device, draft):
                layout, nodes = draw_beams(draft, tokens, roots.to(self.device), self.vocabulary, self._ends)
            # The trees make every row longer, which moves the texts' flat places.
            rows = places // tokens.shape[1]
            moved = places + rows * (layout.tokens.shape[1] - tokens.shape[1])
            found.append(self._compare([draft], layout.tokens, torch.cat([moved, nodes]), layout))
        return Lesson(
            [lesson.losses[0] for lesson in found],
            torch.cat([lesson.overlaps for lesson in found]),
            torch.cat([lesson.places for lesson in found]),
        )

    def _compare(self, drafts: Sequence[Any], tokens: Tensor, places: Tensor, layout: Layout | None) -> Lesson:
        encoded = self.teacher.encode(tokens, places, layout.arguments(self.teacher.model) if layout else {})
        own = read_as(tokens, self.vocabulary)
        pairs = []
        for draft in drafts:
            with narrow(self.device, draft):
                hidden = read_places(
                    draft,
                    self._fast[id(draft)],
                    own,
                    places,
                    layout.arguments(draft) if layout else {},
                    torch.bfloat16 if _uses_bfloat16(self.device, draft.dtype) else None,
                )
                states, head = _before_head(draft, hidden)
            width = len(head) if self._columns is not None else self.teacher.vocab_size
            pairs.append((narrowed(states, self.device), head if width == len(head) else head[:width]))
        losses, overlaps = fused_loss(
            lambda first, last: self.teacher.logits(encoded[first:last]), pairs, self.loss, columns=self._columns
        )
        return Lesson(losses, overlaps, torch.full((len(pairs),), float(len(places)), dtype=torch.float64))


@torch.no_grad()
def measure_overlap(classroom: Classroom, texts: StoredTexts, numbers: Sequence[int]) -> list[float]:
    """Mean over the answers' places of sum(min(p, q)) at temperature 1, unfiltered, for every draft.

    Args:
        classroom: Target and drafts.
        texts: Sampled text.
        numbers: The held-out texts.
    """
    lessons = [classroom.read_texts(texts, batch) for batch in texts.group(list(numbers), _MEASURED_TOKENS)]
    overlaps = torch.stack([lesson.overlaps for lesson in lessons]).double().cpu()
    places = torch.stack([lesson.places for lesson in lessons])
    return [float(item) for item in (overlaps * places).sum(0) / places.sum(0).clamp(min=1)]


def _before_head(draft: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What meets the last matrix of a draft's head, and that matrix, `[vocab, width]`."""
    head = draft.get_output_embeddings()
    if isinstance(head, LowRankHead):
        return head.down(hidden), head.up.weight
    return hidden, head.weight


def narrow(device: torch.device, draft: Any) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the device multiplies it natively."""
    if not _uses_bfloat16(device, draft.dtype):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def narrowed(hidden: Tensor, device: torch.device) -> Tensor:
    """In bfloat16 where that is multiplied natively."""
    return hidden.to(torch.bfloat16) if _uses_bfloat16(device, hidden.dtype) else hidden


def _uses_bfloat16(device: torch.device, dtype: torch.dtype) -> bool:
    has_products = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_native_bfloat16()
    return dtype == torch.float32 and has_products
