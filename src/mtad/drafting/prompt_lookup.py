"""What followed the last time: drafts copied out of the row's own text."""

import torch
from torch import Tensor

from mtad.drafting.chain import chain_tree
from mtad.models.history import TokenHistory
from mtad.structures.acceptance import Acceptance
from mtad.structures.constants import first_numbers
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree


class PromptLookupDrafter:
    """Proposes what followed the latest earlier occurrence of the row's last tokens (Saxena 2023).

    The longest match counts, of at most `ngram` tokens and at least one; of equally long ones the latest. Prompt and
    answer are searched alike. Where nothing matches, or the text ends before gamma tokens, nodes are absent.

    No model is asked. A proposal is certain: its distribution is one-hot and its joint probability one, so the joint
    rule measures the target's own P(path) against tau, and rejection rules keep a token with the target's probability.

    Args:
        gamma: Tokens to draft, at least 1.
        ngram: Longest match looked for, at least 1.
        vocab_size: Width of the distributions.
        device: Where the rows live.
    """

    def __init__(self, gamma: int, ngram: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.runner = TokenHistory(device)
        self.gamma = gamma
        self.ngram = ngram
        self.vocab_size = vocab_size
        self.num_nodes = gamma
        self.num_slots = 0
        self._drafted: Tensor | None = None

    def draft(self, previous: Tensor, pending: Tensor, rows: RowControls) -> TokenTree:
        """See `Drafter.draft`; the tree carries `draft_log_probs`."""
        history = self.runner
        starts = find_continuation(history.tokens, history.lengths, self.ngram).unsqueeze(1)
        places = starts + first_numbers(min(self.gamma, rows.deepest), starts.device)
        valid = (starts > 0) & (places < history.lengths.unsqueeze(1))
        tokens = torch.where(valid, history.tokens.gather(1, torch.where(valid, places, 0)), 0)
        self._drafted = tokens
        joint = torch.where(valid, 0.0, -torch.inf)
        certain = joint.new_full((*tokens.shape, self.vocab_size), -torch.inf)
        return chain_tree(tokens, joint, certain.scatter(-1, tokens.unsqueeze(-1), joint.unsqueeze(-1)), valid=valid)

    def keep_path(self, acceptance: Acceptance, active: Tensor) -> None:
        """See `Drafter.keep_path`."""
        assert self._drafted is not None, "draft() comes before keep_path()"
        self.runner.append(acceptance.emitted_tokens(self._drafted), acceptance.num_accepted + 1, active)


def find_continuation(tokens: Tensor, lengths: Tensor, ngram: int) -> Tensor:
    """Where the text went on after the latest, longest earlier occurrence of its own end.

    Args:
        tokens: `[batch, capacity]` int64; what lies behind a row's length is not looked at.
        lengths: Tokens of each row, at least 1, `[batch]` int64.
        ngram: Longest match looked for, at least 1.

    Returns:
        Index of the token behind the match, below the row's length, or 0 where nothing matches, `[batch]` int64.
    """
    ends = first_numbers(tokens.shape[1], tokens.device)
    windows = torch.nn.functional.pad(tokens, (ngram - 1, 0), value=-1).unfold(1, ngram, 1)
    last = windows.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, ngram))
    matched = (windows == last).flip(-1).long().cumprod(-1).sum(-1)
    matched = torch.where(ends < lengths.unsqueeze(1) - 1, matched, 0)
    best = (matched * len(ends) + ends).argmax(1)
    is_match = matched.gather(1, best.unsqueeze(1)).squeeze(1) > 0
    return torch.where(is_match, best + 1, 0)
