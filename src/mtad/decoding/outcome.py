"""What one iteration brings to the host."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.results import TopLogProbs
from mtad.structures.tree import TokenTree, joint_above


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """What one iteration added to one row.

    Attributes:
        tokens: New token ids, kept draft first; may be empty for methods that answer at the end.
        num_drafted: Leading tokens that came from the draft; with `from_draft`, levels of drafted beams kept.
        log_probs: Natural log-probability of each token under the unwarped temperature-1 target.
        joint_log_ratio: log P - log Q of the kept path, 0 when nothing was kept.
        target_calls: Decode calls of the target the row took part in.
        refusals: Probability that token-by-token rejection would have refused each drafted token; see
            `refusal_probabilities`.
        from_draft: Whether each token came from the draft, for methods that draft but answer at the end.
        is_dead_end: Whether no token may follow these under the row's constraints.
        guarded_depth: Levels that the guard let the draft have, 0 for none at all; None where nothing guards.
        top_log_probs: The target's best tokens at the place of each token, where any row of the batch asked for them.
    """

    tokens: list[int]
    num_drafted: int
    log_probs: list[float]
    joint_log_ratio: float
    target_calls: int
    refusals: list[float] = field(default_factory=list)
    from_draft: list[bool] | None = None
    is_dead_end: bool = False
    guarded_depth: int | None = None
    top_log_probs: list[TopLogProbs] = field(default_factory=list)

    def is_drafted(self, index: int) -> bool:
        """Whether the token at `index` came from the draft."""
        return index < self.num_drafted if self.from_draft is None else self.from_draft[index]


@dataclass(slots=True)
class PhaseTimes:
    """Wall seconds of the whole batch by phase; dispatch time only on an asynchronous device."""

    draft_s: float = 0.0
    verify_s: float = 0.0
    constraint_s: float = 0.0

    def since(self, earlier: "PhaseTimes") -> "PhaseTimes":
        """What was spent since an earlier reading."""
        return PhaseTimes(
            self.draft_s - earlier.draft_s, self.verify_s - earlier.verify_s, self.constraint_s - earlier.constraint_s
        )


def undrafted(tokens: list[int], log_probs: list[float], target_calls: int) -> RowOutcome:
    """The outcome of a method without a draft."""
    return RowOutcome(tokens=tokens, num_drafted=0, log_probs=log_probs, joint_log_ratio=0.0, target_calls=target_calls)


def unwarped_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Temperature-1 natural log-probability of `tokens`.

    Args:
        logits: `[batch, count, vocab]`.
        tokens: `[batch, count]` int64.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    return scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scores.logsumexp(-1)


def best_log_probs(logits: Tensor, count: int) -> Tensor:
    """The most likely tokens and their temperature-1 natural log-probabilities, falling.

    Args:
        logits: `[batch, places, vocab]`.
        count: Tokens per place, at most the vocabulary.

    Returns:
        `[batch, places * 2 * count]` float64: for each place its token ids, then their log-probabilities.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    values, token_ids = scores.topk(count, dim=-1)
    log_probs = values - scores.logsumexp(-1, keepdim=True)
    return torch.cat([token_ids.double(), log_probs.double()], -1).flatten(1)


def refusal_probabilities(tree: TokenTree, target_log_probs: Tensor, acceptance: Acceptance) -> Tensor:
    """Probability that token-by-token rejection would refuse each kept token, given that it kept those before it.

    That is 1 - min(1, p / q) with both models warped (Leviathan et al. 2023): 0 where the target likes the token at
    least as well as the draft does. It says how far a lossy rule goes beyond a lossless one.

    Args:
        tree: The draft.
        target_log_probs: Warped natural logs, `[batch, 1 + nodes, vocab]`.
        acceptance: What was kept.

    Returns:
        `[batch, gamma]`; without meaning behind a row's kept path.
    """
    if tree.num_nodes == 0:
        return target_log_probs.new_zeros(len(tree.parents), 0)
    batch = first_numbers(tree.batch_size, tree.parents.device).unsqueeze(1)
    target_step = target_log_probs[batch, tree.parents + 1, tree.tokens]
    draft_step = tree.joint_draft_log_probs - joint_above(tree.parents, tree.joint_draft_log_probs)
    refused = 1 - (target_step - draft_step).clamp(max=0).exp()
    return refused.masked_fill(tree.carried, 0.0).gather(1, acceptance.path_nodes.clamp(min=0))
