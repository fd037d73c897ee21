"""Log-probabilities of given texts under the target."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtad.errors import CapacityError
from mtad.models.forward import ForwardBatch
from mtad.models.runner import ModelRunner

_CHUNK = 128


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What the model makes of each token of a text but the first.

    Attributes:
        log_probs: Natural log-probabilities, unwarped, at temperature 1.
        is_best: Whether the token is the most likely one at its place.
    """

    log_probs: tuple[float, ...]
    is_best: tuple[bool, ...]


@torch.inference_mode()
def score_sequences(runner: ModelRunner, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
    """Score texts of one batch, a chunk of tokens at a time; what the runner had cached is forgotten.

    Args:
        runner: The model.
        sequences: Token ids, at least one text of at least one token each.

    Raises:
        CapacityError: A text is longer than the model reads.
    """
    longest = max(len(sequence) for sequence in sequences)
    if runner.max_positions is not None and longest > runner.max_positions:
        raise CapacityError(
            f"a text to be scored has {longest} tokens, but the model reads at most {runner.max_positions}; shorten it"
        )
    # Rows of one length: what pads a shorter text comes after it, where its own tokens never look.
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in sequences], device=runner.device)
    runner.allocate(len(sequences), longest)
    log_probs, is_best = [], []
    for start in range(0, longest, _CHUNK):
        chunk = tokens[:, start : start + _CHUNK]
        found = runner.forward(_chunk_batch(chunk, start)).float().log_softmax(-1)
        following = tokens[:, start + 1 : start + 1 + chunk.shape[1]]
        found = found[:, : following.shape[1]]
        log_probs.append(found.gather(-1, following.unsqueeze(-1)).squeeze(-1))
        is_best.append(found.argmax(-1) == following)
    values, flags = torch.cat(log_probs, 1).tolist(), torch.cat(is_best, 1).tolist()
    lengths = [len(text) - 1 for text in sequences]
    return [
        TokenScores(tuple(row[:length]), tuple(best[:length]))
        for row, best, length in zip(values, flags, lengths, strict=True)
    ]


def _chunk_batch(tokens: Tensor, start: int) -> ForwardBatch:
    """Tokens `[batch, queries]` at positions `start` on, each of which sees itself and all before it."""
    positions = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand_as(tokens)
    return ForwardBatch(
        tokens=tokens,
        positions=positions,
        slots=positions,
        prefix_lengths=positions + 1,
        ancestors=torch.zeros_like(tokens),
        tree_starts=torch.full_like(tokens[:, 0], start + tokens.shape[1]),
        num_slots=start + tokens.shape[1],
        num_logits=tokens.shape[1],
    )
