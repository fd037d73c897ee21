"""The (beam, token) candidates of one layer under the target and under the draft."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtad.drafting import Beams, BeamSampler, ForestLevel, unwarped_steps
from mtad.structures.rows import RowControls


@dataclass(slots=True, kw_only=True)
class LayerCandidates:
    """Every candidate that either model may draw below some beams, `kept` a beam, numbered beam by beam.

    Attributes:
        beams: The beams above, with the target's weights.
        logits: The target's logits after each of them, `[batch, width, vocab]`.
        log_probs: The same warped, -inf for candidates of the draft alone, `[batch, width, kept]`.
        token_ids: The candidates' tokens, `[batch, width, kept]` int64; of a token given twice the first counts.
        eos_token_ids: Tokens that finish a beam, `[count]` int64.
    """

    beams: Beams
    logits: Tensor
    log_probs: Tensor
    token_ids: Tensor
    eos_token_ids: Tensor

    @classmethod
    def below(
        cls, beams: Beams, logits: Tensor, level: ForestLevel | None, sampler: BeamSampler, rows: RowControls
    ) -> "LayerCandidates":
        """The candidates below `beams`: the target's first, then those of a drafted level, if there is one."""
        log_probs, token_ids = sampler.candidates(beams, logits, rows)
        if level is not None:
            log_probs = torch.nn.functional.pad(log_probs, (0, level.token_ids.shape[-1]), value=-torch.inf)
            token_ids = torch.cat([token_ids, level.token_ids], -1)
        return cls(
            beams=beams, logits=logits, log_probs=log_probs, token_ids=token_ids, eos_token_ids=sampler.eos_token_ids
        )

    @property
    def target_law(self) -> Tensor:
        """The target's law of beam sampling over the candidates, linear, `[batch, width * kept]` float64."""
        return self._log_weights.double().softmax(-1)

    def draft_law(self, level: ForestLevel | None) -> tuple[Tensor, Tensor]:
        """What a drafted level says of the candidates.

        Returns:
            Its law over them, linear, `[batch, width * kept]` float64, and the drafted ones in the order they were
            drawn, -1 for none, `[batch, width]` int64. Without a level the law is 0 and nothing was drafted.
        """
        batch, width, kept = self.token_ids.shape
        law = torch.zeros(batch, width * kept, dtype=torch.float64, device=self.token_ids.device)
        if level is None:
            return law, torch.full_like(self.beams.tokens, -1)
        numbers = torch.arange(width * kept, device=law.device).view(width, kept).expand_as(self.token_ids)
        number_of = torch.zeros_like(self.logits, dtype=torch.int64)
        number_of = number_of.scatter_reduce(2, self.token_ids, numbers, "amin", include_self=False)
        law = law.scatter_add(1, number_of.gather(2, level.token_ids).flatten(1), level.law.flatten(1))
        flat = level.beams.origins * self.logits.shape[-1] + level.beams.tokens
        drafted = number_of.flatten(1).gather(1, flat)
        return law, torch.where(level.beams.weights > -torch.inf, drafted, -1)

    def take(self, picks: Tensor) -> Beams:
        """The beams that these candidates make, `[batch, width]` int64; -1 makes one of weight 0."""
        is_missing, index = picks < 0, picks.clamp(min=0)
        origins = torch.div(index, self.token_ids.shape[-1], rounding_mode="floor")
        tokens = self.token_ids.flatten(1).gather(1, index)
        weights = self._log_weights.gather(1, index).masked_fill(is_missing, -torch.inf)
        steps = self.log_probs.flatten(1).gather(1, index).masked_fill(is_missing, -torch.inf)
        carried = self.beams.finished.gather(1, origins)
        return Beams(
            tokens=tokens,
            origins=origins,
            weights=weights - weights.logsumexp(1, keepdim=True),
            joint=self.beams.joint.gather(1, origins) + steps,
            finished=carried | torch.isin(tokens, self.eos_token_ids),
            carried=carried,
            unwarped=unwarped_steps(self.logits, origins, tokens, carried),
        )

    def unwarped_of(self, level: ForestLevel) -> Tensor:
        """Temperature-1 natural log-probability of each drafted node under the target, 0 where carried."""
        carried = self.beams.finished.gather(1, level.beams.origins)
        return unwarped_steps(self.logits, level.beams.origins, level.beams.tokens, carried)

    @property
    def _log_weights(self) -> Tensor:
        return (self.beams.weights.unsqueeze(-1) + self.log_probs).flatten(1)
