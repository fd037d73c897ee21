"""Speculative beam sampling: one layer of drafted beams becomes one layer of the target's beam sampling."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtad.sampling import Stream, draw_categorical, draw_without_replacement, uniform
from mtad.structures.rows import RowControls, merge_rows

_ROUNDING = 1e-6
"""Probabilities this close to the wanted one reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamLayer:
    """The beams of one layer, as candidates beam * vocab + token.

    Attributes:
        picks: Kept candidates in the order they were drawn, -1 for none, `[batch, width]` int64.
        from_draft: Whether each kept candidate is an accepted draft, `[batch, width]` bool.
        accepted: Which drafted candidates were accepted, in the draft's order, `[batch, width]` bool.
        is_passed: Whether drafts alone fill the layer, so that the next one can be verified, `[batch]` bool.
    """

    picks: Tensor
    from_draft: Tensor
    accepted: Tensor
    is_passed: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamLayerVerifier:
    """Draws a layer of beams from the target, using up drafted ones (Qin et al., AAAI 2025, algorithm 1).

    With P the target's law over (beam, token) candidates and Q the draft's, drafted candidates are judged in turn: y is
    accepted with probability min(1, P'(y) / Q(y)), where P' starts as P, becomes norm(max(P' - Q, 0)) after
    a rejection and P again after an acceptance. Once the layer's width is reached the layer is passed; when drafts run
    out before, one more beam is drawn from P' and the others, up to the whole width, from P. Drafts under beams
    that the target did not keep have P(y) = 0; Q keeps their mass.

    Guarantee. At `acceptance` 0 the layer's width is always `width`, and the list of kept candidates has exactly
    the law of the target's own beam sampling with the same draw, given the layer above: independent draws from P
    (`sample`), draws without replacement (`gumbel`), the best of P (`top`); so whole answers have the law of
    `beam_sampling`. Above 0 a layer is passed with M <= width beams, M chosen from P and Q before the drafts are
    looked at. The first M beams of every layer still have that law, but a layer that is not passed holds `width`
    beams, and whether it is passed depends on the beams themselves: then it is not beam sampling of any fixed width.
    Width 1 is exact in any case, and is token-by-token rejection.

    The steps are those of the authors' published code, which however draws without replacement and verifies as if with,
    applies the warp once more to the joint law of beams and tokens, and takes Q off twice when it computes M.
    Drawing without replacement is made exact here by taking each draft off Q and each kept beam off P (as Jeon et al.
    2024 do for the children of a node).

    Attributes:
        width: Beams per layer.
        draw: How beams are drawn, by the target as by the draft; greedy rows use `top`.
        acceptance: Probability, in [0, 1], with which M beams must be acceptable; M is the largest such number, at
            least 1. It is computed for draws with replacement; for `top`, M is the number of leading beams drafted.
    """

    width: int
    draw: Literal["top", "gumbel", "sample"]
    acceptance: float

    def accept(self, target: Tensor, draft: Tensor, drafted: Tensor, rows: RowControls, depth: int) -> BeamLayer:
        """Judge one layer.

        Args:
            target: The target's law over candidates, linear, normalised, `[batch, candidates]`.
            draft: The law the drafts were drawn from, linear, over the same candidates; all 0 where there are none.
            drafted: Drafted candidates in the order they were drawn, -1 for none, `[batch, width]` int64.
            rows: Settings and positions of the requests.
            depth: Depth of the layer, which counts the draws.
        """
        ranked = self._accept_best(target, drafted)
        if self.draw == "top":
            return ranked
        return merge_rows(rows.is_greedy, ranked, self._accept_drawn(target, draft, drafted, rows, depth))

    def _accept_best(self, target: Tensor, drafted: Tensor) -> BeamLayer:
        """The target's best candidates; passed when the leading ones were drafted."""
        values, best = target.topk(self.width, dim=1)
        place = torch.arange(self.width, device=best.device)
        support = (values > 0).sum(1)
        is_drafted = (best.unsqueeze(2) == drafted.unsqueeze(1)).any(2)
        leading = (is_drafted | (values == 0)).long().cumprod(1).sum(1)
        wanted = support if self.acceptance == 0 else torch.minimum(leading.clamp(min=1), support)
        is_passed = leading >= wanted
        picks = torch.where(place < torch.where(is_passed, wanted, support).unsqueeze(1), best, -1)
        return BeamLayer(
            picks=picks,
            from_draft=is_drafted & (picks >= 0),
            accepted=(drafted.unsqueeze(2) == picks.unsqueeze(1)).any(2) & (drafted >= 0),
            is_passed=is_passed,
        )

    def _accept_drawn(self, target: Tensor, draft: Tensor, drafted: Tensor, rows: RowControls, depth: int) -> BeamLayer:
        wanted = self._width_to_pass(target, draft)
        draws = uniform(rows, Stream.ACCEPT, depth, self.width)
        accepted = torch.zeros_like(drafted, dtype=torch.bool)
        fresh, left = target, target
        for place in range(self.width):
            here = slice(place, place + 1)
            token = drafted[:, here].clamp(min=0)
            is_judged = (drafted[:, here] >= 0) & (accepted.sum(1, keepdim=True) < wanted)
            is_kept = is_judged & (draws[:, here] * draft.gather(1, token) < left.gather(1, token))
            residual = torch.where(is_judged, residual_law(left, draft), left)
            if self.draw == "gumbel":
                fresh = torch.where(is_kept, _without(fresh, token), fresh)
                draft = torch.where(is_judged, _without(draft, token), draft)
            left = torch.where(is_kept, fresh, residual)
            accepted[:, here] = is_kept
        fills = self._fill(fresh, left, uniform(rows, Stream.NEXT_TOKEN, depth, self.width))
        return _assemble(drafted, accepted, fills, accepted.sum(1) >= wanted.squeeze(1))

    def _width_to_pass(self, target: Tensor, draft: Tensor) -> Tensor:
        """Accepted drafts that pass the layer, `[batch, 1]` int64."""
        width = torch.full_like(target[:, :1], self.width, dtype=torch.int64)
        if self.acceptance > 0:
            width = dynamic_width(target, draft, self.width, self.acceptance).unsqueeze(1)
        if self.draw == "gumbel":
            width = torch.minimum(width, (target > 0).sum(1, keepdim=True))
        return width

    def _fill(self, fresh: Tensor, left: Tensor, draws: Tensor) -> Tensor:
        """Candidates for the places that drafts leave open: the first from `left`, the others from `fresh`."""
        is_exhausted = (left == 0).all(1, keepdim=True)
        first = draw_categorical(torch.where(is_exhausted, 1.0, left).log(), draws[:, :1])
        if self.draw == "sample" or self.width == 1:
            fills = torch.cat([first, draw_categorical(fresh.log(), draws[:, 1:])], 1)
        else:
            others = _without(fresh, first)
            has_others = (others > 0).any(1, keepdim=True)
            more = draw_without_replacement(torch.where(has_others, others, 1.0).log(), draws[:, 1:])
            fills = torch.cat([first, torch.where(has_others, more, -1)], 1)
        return torch.where(is_exhausted, -1, fills)


def dynamic_width(target: Tensor, draft: Tensor, num_drafts: int, acceptance: float) -> Tensor:
    """Largest number of beams that `num_drafts` independent drafts fill with a wanted probability, at least 1.

    After j rejections in a row the next draft is accepted with the probability 1 - |P' - Q| of the j-th residual P',
    whatever was rejected, so acceptances renew the process and their number follows from the law of the drafts spent
    on one (Qin et al., AAAI 2025, section on the dynamic width).

    Args:
        target: The target's law, linear, `[batch, candidates]`.
        draft: The draft's law, linear, `[batch, candidates]`; mass that the target cannot take may be missing.
        num_drafts: Drafts that will be judged.
        acceptance: Wanted probability, above 0.

    Returns:
        `[batch]` int64 in [1, num_drafts].
    """
    spent = _spent_law(target.double(), draft.double(), num_drafts)
    counts = torch.arange(num_drafts + 1, device=target.device)
    gaps = counts.unsqueeze(1) - counts
    steps = torch.where(gaps > 0, spent[:, gaps.clamp(min=0)], 0.0)
    at_least = torch.ones_like(spent).unsqueeze(-1)
    width = torch.zeros_like(counts[:1])
    for _ in range(num_drafts):
        at_least = steps @ at_least
        width = width + (at_least[:, -1, 0] >= acceptance - _ROUNDING)
    return width.clamp(min=1)


def _spent_law(target: Tensor, draft: Tensor, num_drafts: int) -> Tensor:
    """Probability that the first acceptance comes with the j-th draft, `[batch, 1 + num_drafts]`; 0 for j = 0."""
    left, waits = target, torch.ones_like(target[:, 0])
    law = [torch.zeros_like(waits)]
    for _ in range(num_drafts):
        kept = torch.minimum(left, draft).sum(1).clamp(max=1)
        law.append(waits * kept)
        waits = waits * (1 - kept)
        left = residual_law(left, draft)
    return torch.stack(law, 1)


def residual_law(target: Tensor, draft: Tensor) -> Tensor:
    """norm(max(P - Q, 0)) of `[batch, candidates]`; P itself where nothing is left, which no rejection meets."""
    rest = (target - draft).clamp(min=0)
    mass = rest.sum(1, keepdim=True)
    return torch.where(mass > 0, rest / mass, target)


def _without(law: Tensor, token: Tensor) -> Tensor:
    """The law given that it is not `token`, `[batch, 1]`; all 0 when nothing else was possible."""
    rest = law.scatter(1, token, 0.0)
    mass = rest.sum(1, keepdim=True)
    return torch.where(mass > 0, rest / mass, 0.0)


def _assemble(drafted: Tensor, accepted: Tensor, fills: Tensor, is_passed: Tensor) -> BeamLayer:
    """Accepted drafts in front, in their order, then fills where the layer is not passed."""
    kept_first = drafted.gather(1, (~accepted).long().argsort(dim=1, stable=True))
    num_kept = accepted.sum(1, keepdim=True)
    place = torch.arange(drafted.shape[1], device=drafted.device)
    open_places = torch.where(is_passed.unsqueeze(1), -1, fills.gather(1, (place - num_kept).clamp(min=0)))
    from_draft = place < num_kept
    return BeamLayer(
        picks=torch.where(from_draft, kept_first, open_places),
        from_draft=from_draft,
        accepted=accepted,
        is_passed=is_passed,
    )
