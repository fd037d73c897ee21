"""The draft's own beams behind places of the target's texts, laid out beside them so that one call reads all.

At these places the draft is asked while it drafts, and a text of the target never shows them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtad.distill.teacher import last_hidden
from mtad.distill.vocabulary import read_as
from mtad.models.intersection import VocabularyMap
from mtad.models.trimmed_vocabulary import kept_tokens

BEAM_WIDTH, BEAM_DEPTH, TREES_PER_TEXT = 3, 3, 8
"""The beams that `mmtad` drafts by default, behind so many places of every text."""


@dataclass(slots=True)
class Layout:
    """Texts with trees beside them.

    Attributes:
        tokens: The target's ids, texts first, `[rows, columns]` int64.
        positions: Of every token in its sequence, `[rows, columns]` int64.
        visible: Whether a token sees another, `[rows, columns, columns]` bool.
    """

    tokens: Tensor
    positions: Tensor
    visible: Tensor

    def arguments(self, model: Any) -> dict[str, Tensor]:
        """What a model's call needs beside the tokens."""
        mask = self.visible.unsqueeze(1)
        if model.config.get_text_config(decoder=True)._attn_implementation == "eager":
            dtype = model.get_input_embeddings().weight.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
        return {"position_ids": self.positions, "attention_mask": mask}

    def grown(self, tokens: Tensor, parents: Tensor) -> "Layout":
        """With one more token behind each of some columns, `[rows, count]` each."""
        rows, count = tokens.shape
        old = self.tokens.shape[1]
        width = old + count
        visible = torch.zeros(rows, width, width, dtype=torch.bool, device=tokens.device)
        visible[:, :old, :old] = self.visible
        visible[:, old:, :old] = self.visible.gather(1, parents.unsqueeze(-1).expand(-1, -1, old))
        visible[:, range(old, width), range(old, width)] = True
        positions = self.positions.gather(1, parents) + 1
        return Layout(torch.cat([self.tokens, tokens], 1), torch.cat([self.positions, positions], 1), visible)


def spread_roots(spans: Tensor, generator: torch.Generator) -> Tensor:
    """Places of every text, one drawn from each of `TREES_PER_TEXT` equal stretches of its answer.

    Args:
        spans: First place and number of places, `[rows, 2]` int64.
        generator: On the CPU; advanced.

    Returns:
        `[rows, trees]` int64; short answers repeat places.
    """
    drawn = torch.rand(len(spans), TREES_PER_TEXT, generator=generator, dtype=torch.float64)
    shares = (torch.arange(TREES_PER_TEXT) + drawn) / TREES_PER_TEXT
    return spans[:, :1] + (shares * spans[:, 1:]).long()


@torch.no_grad()
def draw_beams(
    draft: Any, tokens: Tensor, roots: Tensor, vocabulary: VocabularyMap | None, eos_token_ids: Tensor
) -> tuple[Layout, Tensor]:
    """Beam search with the draft behind every root, as `mmtad` drafts by default.

    Args:
        draft: Being trained.
        tokens: Right-padded texts in the target's ids, `[rows, tokens]` int64.
        roots: Columns, `[rows, trees]` int64.
        vocabulary: Where the draft has some of the tokens only.
        eos_token_ids: Tokens that end a beam, `[count]` int64.

    Returns:
        Texts and trees, and the flat places of the nodes that go on, `[places]` int64.
    """
    rows, length = tokens.shape
    columns = torch.arange(length, device=tokens.device)
    layout = Layout(tokens, columns.expand(rows, -1), (columns <= columns.unsqueeze(1)).expand(rows, -1, -1))
    frontier = roots.unsqueeze(-1)
    weights = torch.zeros(frontier.shape, device=tokens.device)
    live = []
    for _ in range(BEAM_DEPTH):
        hidden = last_hidden(draft, read_as(layout.tokens, vocabulary), **layout.arguments(draft))
        states = hidden.gather(1, frontier.flatten(1).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        log_probs = draft.get_output_embeddings()(states).float().log_softmax(-1).unflatten(1, frontier.shape[1:])
        scores, picks = (weights.unsqueeze(-1) + log_probs).flatten(2).topk(BEAM_WIDTH)
        chosen = picks % log_probs.shape[-1]
        if vocabulary is not None:
            chosen = kept_tokens(vocabulary).to(chosen.device)[chosen]
        parents = frontier.gather(2, picks // log_probs.shape[-1])
        first = layout.tokens.shape[1]
        layout = layout.grown(chosen.flatten(1), parents.flatten(1))
        goes_on = (scores > -torch.inf) & ~torch.isin(chosen, eos_token_ids)
        live.append(goes_on.flatten(1))
        weights = scores.masked_fill(~goes_on, -torch.inf)
        frontier = torch.arange(first, layout.tokens.shape[1], device=tokens.device).view(1, *chosen.shape[1:])
        frontier = frontier.expand_as(chosen)
    is_place = torch.cat([torch.zeros_like(tokens, dtype=torch.bool), *live], 1)
    return layout, is_place.flatten().nonzero().squeeze(1)
