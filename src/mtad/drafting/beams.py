"""One step of beam sampling: candidates, draw, renormalised weights."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtad.sampling import Candidates, Stream, draw_categorical, draw_without_replacement, uniform, warp_candidates
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls

Draw = Literal["top", "gumbel", "sample"]


@dataclass(slots=True)
class Beams:
    """The beams of one depth; every tensor is `[batch, width]`.

    Attributes:
        tokens: Newest token of each beam, int64.
        origins: Index of the beam of the previous depth that each came from, int64.
        weights: Natural log of the beam's weight; the weights of a row sum to one.
        joint: Natural log of the beam's joint probability under the warped model; -inf where no beam was left.
        finished: Whether the beam has drawn EOS, bool.
        carried: Whether it had already drawn EOS before this depth, bool.
        unwarped: Temperature-1 natural log-probability of the newest token, 0 where carried.
        ancestors: Ancestor bits of each beam's node, int64; set where beams become a tree.
        is_root: Whether these are the empty beams, none of which is finished.
    """

    tokens: Tensor
    origins: Tensor
    weights: Tensor
    joint: Tensor
    finished: Tensor
    carried: Tensor
    unwarped: Tensor | None = None
    ancestors: Tensor | None = None
    is_root: bool = False

    @classmethod
    def root(cls, logits: Tensor) -> "Beams":
        """The single empty beam of every row of `[batch, 1, vocab]` logits."""
        nothing = torch.zeros(len(logits), 1, dtype=torch.int64, device=logits.device)
        certain = nothing.to(logits.dtype if logits.dtype == torch.float64 else torch.float32)
        return cls(nothing, nothing, certain, certain, nothing.bool(), nothing.bool(), is_root=True)

    def select(self, rows: Tensor) -> "Beams":
        """What the next depth needs of the named rows, `[kept]` int64."""
        names = ("tokens", "origins", "weights", "joint", "finished", "carried")
        return Beams(**{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSampler:
    """How beams are drawn.

    Attributes:
        width: Beams kept, at least 1.
        draw: `top` takes the best, `gumbel` draws without and `sample` with replacement. Greedy rows use `top`.
        eos_token_ids: Tokens that finish a beam, `[count]` int64.
        keeps_unwarped: Fill `Beams.unwarped`.
    """

    width: int
    draw: Draw
    eos_token_ids: Tensor
    keeps_unwarped: bool = False

    def expand(self, beams: Beams, logits: Tensor, rows: RowControls, depth: int) -> Beams:
        """Draw the next depth's beams (Qin et al. 2025, section 4.1).

        A candidate's weight is its beam's weight times its token's probability; the weights of the drawn ones are
        divided by their sum. A finished beam has one candidate, itself.

        Args:
            beams: The beams so far.
            logits: Logits after each of them, `[batch, beams, vocab]`.
            rows: Settings and positions of the rows.
            depth: Depth of the new beams, which counts the draws.
        """
        return self.expand_by(beams, logits, rows, self.uniforms(rows, depth))

    def uniforms(self, rows: RowControls, depth: int) -> Tensor | None:
        """The random numbers of a depth, `[batch, width]`; None where nothing is drawn."""
        return None if self.draw == "top" else uniform(rows, Stream.DRAFT, depth, self.width)

    def expand_by(self, beams: Beams, logits: Tensor, rows: RowControls, uniforms: Tensor | None) -> Beams:
        """`expand` by given random numbers."""
        log_probs, token_ids = self.candidates(beams, logits, rows)
        log_weights = (beams.weights.unsqueeze(-1) + log_probs).flatten(1)
        picks, weights, is_missing = self._draw(log_weights, rows, uniforms)
        origins = torch.div(picks, log_probs.shape[-1], rounding_mode="floor")
        tokens = token_ids.flatten(1).gather(1, picks)
        step = log_probs.flatten(1).gather(1, picks).masked_fill(is_missing, -torch.inf)
        carried = beams.finished.gather(1, origins)
        return Beams(
            tokens=tokens,
            origins=origins,
            weights=weights - weights.logsumexp(1, keepdim=True),
            joint=beams.joint.gather(1, origins) + step,
            finished=carried | is_any_of(tokens, self.eos_token_ids),
            carried=carried,
            unwarped=unwarped_steps(logits, origins, tokens, carried) if self.keeps_unwarped else None,
        )

    def candidates(self, beams: Beams, logits: Tensor, rows: RowControls) -> tuple[Tensor, Tensor]:
        """Warped natural log-probabilities and tokens of what may follow each beam, `[batch, beams, kept]` each."""
        best = warp_candidates(logits, rows, num_best=self.width if self.draw == "top" else None)
        return carry_finished(beams, best)

    def _draw(self, log_weights: Tensor, rows: RowControls, uniforms: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of `width` candidates, their log weights, and where none is left, `[batch, width]` each.

        There the index is 0 and the log weight -inf.
        """
        missing = self.width - log_weights.shape[1]
        if missing > 0:
            log_weights = torch.nn.functional.pad(log_weights, (0, missing), value=-torch.inf)
        values, best = log_weights.topk(self.width, dim=1)
        is_missing = values == -torch.inf
        if uniforms is None:
            return best.masked_fill(is_missing, 0), values, is_missing
        draw = draw_categorical if self.draw == "sample" else draw_without_replacement
        drawn = draw(log_weights, uniforms)
        picks = torch.where(rows.is_greedy.unsqueeze(1), best.masked_fill(is_missing, -1), drawn)
        is_missing = picks < 0
        picks = picks.clamp(min=0)
        return picks, log_weights.gather(1, picks).masked_fill(is_missing, -torch.inf), is_missing


def is_any_of(tokens: Tensor, token_ids: Tensor) -> Tensor:
    """Whether each token is one of `[count]` ids; unlike `torch.isin` it never asks the device how many there are."""
    if len(token_ids) == 1:
        return tokens == token_ids
    return (tokens.unsqueeze(-1) == token_ids).any(-1)


def carry_finished(beams: Beams, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Log-probabilities and token ids of all candidates, `[batch, beams, kept]` each; a finished one has one."""
    if beams.is_root:
        return candidates.log_probs, candidates.token_ids
    finished = beams.finished.unsqueeze(-1)
    others = first_numbers(candidates.log_probs.shape[-1], beams.tokens.device) > 0
    certain = torch.where(others, -torch.inf, 0.0)
    log_probs = torch.where(finished, certain, candidates.log_probs)
    token_ids = torch.where(finished, beams.tokens.unsqueeze(-1), candidates.token_ids)
    return log_probs, token_ids


def unwarped_steps(logits: Tensor, origins: Tensor, tokens: Tensor, carried: Tensor) -> Tensor:
    """Temperature-1 natural log-probability of each beam's newest token, 0 where it is carried, `[batch, width]`."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    rows = first_numbers(len(logits), logits.device).unsqueeze(1)
    drawn = scores[rows, origins, tokens] - scores.logsumexp(-1).gather(1, origins)
    return torch.where(carried, 0.0, drawn)
