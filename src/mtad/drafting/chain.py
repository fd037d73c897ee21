"""A single sampled sequence with the distributions it was drawn from."""

import torch
from torch import Tensor

from mtad.models.runner import ModelRunner
from mtad.sampling import Stream, draw_categorical, uniform, warp_logits
from mtad.structures.acceptance import Acceptance
from mtad.structures.between_calls import between_calls
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree


class ChainDrafter:
    """Draws gamma tokens one by one from the auxiliary model (Leviathan et al. 2023, Chen et al. 2023).

    Greedy rows take the most likely token at every depth.

    Args:
        runner: The auxiliary model.
        gamma: Tokens to draft, at least 1.
    """

    def __init__(self, runner: ModelRunner, gamma: int) -> None:
        self.runner: ModelRunner = runner
        self.gamma = gamma
        self.num_nodes = gamma
        self.num_slots = gamma + 1

    def draft(self, previous: Tensor, pending: Tensor, rows: RowControls) -> TokenTree:
        """See `Drafter.draft`; the tree carries `draft_log_probs`."""
        logits = self.runner.score_root(previous, pending)
        tokens, log_probs, distributions = [], [], []
        joint = torch.zeros_like(logits[:, :1])
        deepest = min(self.gamma, rows.deepest)
        for depth in range(1, deepest + 1):
            token, step, distribution = _drawn_token(logits, rows, uniform(rows, Stream.DRAFT, depth, 1))
            tokens.append(token)
            log_probs.append(step)
            distributions.append(distribution)
            if rows.has_confidence:
                joint = joint + step
            if depth == deepest or rows.all_unsure(joint):
                break
            bits = torch.full_like(token, (1 << depth) - 1)
            logits = self.runner.score_level(token, bits, depth - 1, depth)[:, 0]
        return _joined_chain(tokens, log_probs, distributions)

    def keep_path(self, acceptance: Acceptance, active: Tensor) -> None:
        """See `Drafter.keep_path`."""
        self.runner.keep_path(acceptance.path_nodes, acceptance.num_accepted, active)


@between_calls
def _drawn_token(logits: Tensor, rows: RowControls, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One more token `[batch, 1]`, its log-probability, and the law `[batch, vocab]` that it was drawn from."""
    distribution = warp_logits(logits, rows)
    drawn = draw_categorical(distribution, uniforms)
    token = torch.where(rows.is_greedy.unsqueeze(1), distribution.argmax(-1, keepdim=True), drawn)
    return token, distribution.gather(1, token), distribution


@between_calls
def _joined_chain(tokens: list[Tensor], log_probs: list[Tensor], distributions: list[Tensor]) -> TokenTree:
    return chain_tree(torch.cat(tokens, 1), torch.cat(log_probs, 1).cumsum(1), torch.stack(distributions, 1))


def chain_tree(
    tokens: Tensor,
    joint_draft_log_probs: Tensor,
    draft_log_probs: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    carried: Tensor | None = None,
) -> TokenTree:
    """A tree that is one path.

    Args:
        tokens: `[batch, gamma]` int64.
        joint_draft_log_probs: Natural log of each prefix's joint draft probability, `[batch, gamma]`.
        draft_log_probs: Distributions the tokens were drawn from, `[batch, gamma, vocab]`.
        valid: As in `TokenTree`; all true when None.
        carried: As in `TokenTree`; all false when None.
    """
    nodes = first_numbers(tokens.shape[1], tokens.device)
    return TokenTree(
        tokens=tokens,
        parents=(nodes - 1).expand_as(tokens),
        depths=nodes + 1,
        joint_draft_log_probs=joint_draft_log_probs,
        ancestors=((torch.ones_like(nodes) << nodes) * 2 - 1).expand_as(tokens),
        winner=tokens.new_full((tokens.shape[0],), tokens.shape[1] - 1),
        valid=torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid,
        carried=torch.zeros_like(tokens, dtype=torch.bool) if carried is None else carried,
        draft_log_probs=draft_log_probs,
        branching=(1,) * tokens.shape[1],
        depth=tokens.shape[1],
    )
