"""What a rule decided about one draft."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Acceptance:
    """The kept path of every row and the token that follows it.

    Attributes:
        path_nodes: Node indices of the kept path, root's child first, -1 behind its end, `[batch, gamma]` int64.
        num_accepted: Drafted tokens kept, `[batch]` int64.
        next_tokens: The token drawn after the kept path, `[batch]` int64.
        joint_log_ratio: log P(kept path) - log Q(reference of the same length), natural log, `[batch]` float;
            0 where nothing was kept.
    """

    path_nodes: Tensor
    num_accepted: Tensor
    next_tokens: Tensor
    joint_log_ratio: Tensor

    def emitted_tokens(self, drafted: Tensor) -> Tensor:
        """The kept tokens and the next one, `[batch, gamma + 1]` int64; what lies behind has no meaning.

        Args:
            drafted: Tokens of all nodes, `[batch, nodes]` int64.
        """
        next_tokens = self.next_tokens.unsqueeze(1)
        tokens = torch.cat([drafted.gather(1, self.path_nodes.clamp(min=0)), next_tokens], 1)
        return tokens.scatter(1, self.num_accepted.unsqueeze(1), next_tokens)
