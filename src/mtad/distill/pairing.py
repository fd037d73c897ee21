"""Whether a draft can read for a target, and how near its distributions are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mtad.config import ModelOptions
from mtad.distill.store import Text
from mtad.errors import VocabularyMismatchError
from mtad.models.forward import ForwardBatch
from mtad.models.loading import LoadedModels, load_models
from mtad.models.runner import ModelRunner

Fit = Literal["exact", "trimmed", "translated", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """How the vocabularies of a pair meet.

    Attributes:
        fit: `exact`, `trimmed` (a draft made for some of the target's tokens), `translated` (tokens that both have),
            or `none`.
        words: The same for people.
        models: The pair; None where the draft cannot be used.
    """

    fit: Fit
    words: str
    models: LoadedModels | None


def load_pair(options: ModelOptions) -> Pairing:
    """Load a pair as it fits best.

    Raises:
        ModelLoadError: A model cannot be loaded at all.
    """
    try:
        models = load_models(replace(options, match_vocabularies="exact"))
        if models.vocabulary is None:
            return Pairing(fit="exact", words=f"the same {models.target.vocab_size:,} tokens", models=models)
        return Pairing(fit="trimmed", words=f"the draft was made for {models.vocabulary}", models=models)
    except VocabularyMismatchError as error:
        refusal = str(error)
    try:
        models = load_models(replace(options, match_vocabularies="intersection"))
    except VocabularyMismatchError:
        return Pairing(fit="none", words=refusal, models=None)
    return Pairing(fit="translated", words=f"different; the draft has {models.vocabulary}", models=models)


@torch.inference_mode()
def pair_overlap(target: ModelRunner, draft: ModelRunner, texts: Sequence[Text]) -> tuple[float, int]:
    """Mean of sum(min(p, q)) over the places of answers, temperature 1, unfiltered, and the number of places.

    Args:
        target: The large model.
        draft: The small one, speaking the target's tokens.
        texts: Written by the target.
    """
    total, count = 0.0, 0
    for text in texts:
        tokens = torch.tensor([text.token_ids], device=target.device)
        places = slice(text.num_prompt_tokens - 1, len(text.token_ids) - 1)
        p, q = (whole_logits(runner, tokens)[0, places].float().softmax(-1) for runner in (target, draft))
        total += float(torch.minimum(p, q).sum())
        count += len(p)
    return total / max(count, 1), count


def whole_logits(runner: ModelRunner, tokens: Tensor) -> Tensor:
    """Logits at every place of whole texts in one call, `[rows, tokens, vocab]`.

    Args:
        runner: Its cache is overwritten.
        tokens: `[rows, tokens]` int64, without padding.
    """
    rows, length = tokens.shape
    runner.allocate(rows, length)
    columns = torch.arange(length, device=tokens.device).expand(rows, -1)
    return runner.forward(
        ForwardBatch(
            tokens=tokens,
            positions=columns,
            slots=columns,
            prefix_lengths=columns + 1,
            ancestors=torch.zeros_like(tokens),
            tree_starts=torch.full((rows,), runner.num_slots, device=tokens.device),
            num_slots=length,
            num_logits=length,
        )
    )
