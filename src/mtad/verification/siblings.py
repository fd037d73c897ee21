"""Offering the children of a node to the target, one after another: what the lossless tree rules share."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Offers:
    """What becomes of some nodes and their children; probabilities are linear.

    Attributes:
        odds: Probability to accept each child once all earlier siblings were rejected, `[batch, nodes, children]`.
        weights: Probability to accept the node itself once all its children were rejected, `[batch, nodes]`.
        residual: Law of the token after the node in that case, `[batch, nodes, vocab]`.
    """

    odds: Tensor
    weights: Tensor
    residual: Tensor


def offer_children(
    target: Tensor, weights: Tensor, draft: Tensor, tokens: Tensor, valid: Tensor, *, has_replacement: bool
) -> Offers:
    """Offer the children of each node in order, the residual left by one to the next.

    With w the weight of the node, p what is left of the target's law and q the law of the next sibling, the child x is
    accepted with probability min(1, w p(x) / q(x)). A rejection leaves p <- norm(max(w p - q, 0)) and, with s the
    sum before the norm, w <- s / (s + 1 - w). Without replacement q <- norm(q without x).
    Weight 1 stays 1 and makes this recursive rejection sampling (Miao et al., ASPLOS 2024; Jeon et al. 2024).

    Args:
        target: The target's law after each node, linear, `[batch, nodes, vocab]`.
        weights: Probability that each node is acceptable so far, `[batch, nodes]`.
        draft: The draft's law after each node, linear, `[batch, nodes, vocab]`.
        tokens: Drafted children, `[batch, nodes, children]` int64.
        valid: Whether each child exists, `[batch, nodes, children]` bool.
        has_replacement: Whether siblings were drawn with replacement.
    """
    odds = []
    for child in range(tokens.shape[-1]):
        token, exists = tokens[..., child : child + 1], valid[..., child]
        weighted = target * weights.unsqueeze(-1)
        odds.append(torch.where(exists, _odds(weighted.gather(-1, token), draft.gather(-1, token)), 0.0))
        rest = (weighted - draft).clamp(min=0)
        mass = rest.sum(-1)
        has_mass = exists & (mass > 0)
        target = torch.where(has_mass.unsqueeze(-1), rest / mass.unsqueeze(-1), target)
        # Without mass and doubt a rejection is impossible, so any weight would do.
        reached = mass + 1 - weights
        weights = torch.where(exists & (reached > 0), mass / reached, weights)
        if not has_replacement:
            others = draft.scatter(-1, token, 0.0)
            draft = torch.where(exists.unsqueeze(-1), others / others.sum(-1, keepdim=True).clamp(min=_SMALLEST), draft)
    return Offers(torch.stack(odds, -1), weights, target)


_SMALLEST = torch.finfo(torch.float32).tiny
"""Keeps an exhausted draft law at zero instead of 0/0."""


def _odds(weighted: Tensor, draft: Tensor) -> Tensor:
    """min(1, weighted / draft) of `[..., 1]` tensors, without the last dimension; 0 where both are 0."""
    return torch.where(weighted >= draft, (weighted > 0).to(weighted.dtype), weighted / draft).squeeze(-1)


def first_of(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Place of the first true entry of each row of `[batch, count]`, 0 for none, and whether there is one."""
    return flags.int().argmax(1), flags.any(1)


def level_starts(branching: tuple[int, ...]) -> list[int]:
    """Index of the first node of every level, then the number of nodes."""
    starts, level = [0], 1
    for count in branching:
        level *= count
        starts.append(starts[-1] + level)
    return starts
