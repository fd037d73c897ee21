"""What one forward pass computes, and who may see whom."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class ForwardBatch:
    """Some tokens of every row, where their keys go, and which cached slots each may see.

    A token sees the first `prefix_lengths` slots of its row, and the tree nodes whose bit is set in `ancestors`.

    Attributes:
        tokens: `[batch, queries]` int64.
        positions: Position of each token in its sequence, `[batch, queries]` int64.
        slots: Cache slot that receives each token's keys, `[batch, queries]` int64.
        prefix_lengths: Leading slots visible to each token, at least 1, `[batch, queries]` int64.
        ancestors: Bits of visible tree nodes, itself included for a node, `[batch, queries]` int64.
        tree_starts: Slot of tree node 0, `[batch]` int64.
        num_slots: Upper bound of the slots any token may see; known on the host.
        num_logits: Trailing tokens whose logits are wanted.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    prefix_lengths: Tensor
    ancestors: Tensor
    tree_starts: Tensor
    num_slots: int
    num_logits: int
    _masks: dict[tuple[int, torch.device, torch.dtype], Tensor] = field(default_factory=dict)

    def visible_slots(self) -> Tensor:
        """Whether each token sees each slot, `[batch, queries, num_slots]` bool."""
        slots = torch.arange(self.num_slots, device=self.tokens.device)
        committed = slots < self.prefix_lengths.unsqueeze(-1)
        node = slots - self.tree_starts.unsqueeze(-1)
        in_tree = ((node >= 0) & (node < 64)).unsqueeze(1)
        bit = (self.ancestors.unsqueeze(-1) >> node.clamp(0, 63).unsqueeze(1)) & 1
        return committed | (in_tree & bit.bool())

    def additive_mask(self, groups: int, like: Tensor) -> Tensor:
        """The visibility as a mask to add to attention scores, built once for all layers.

        Args:
            groups: Query heads per key head; the queries are repeated that often.
            like: A tensor with the wanted dtype and device.

        Returns:
            `[batch, 1, groups * queries, num_slots]`: 0 where visible, -inf elsewhere.
        """
        key = (groups, like.device, like.dtype)
        if key not in self._masks:
            visible = self.visible_slots().repeat(1, groups, 1).unsqueeze(1).to(like.device)
            mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(~visible, -torch.inf)
        return self._masks[key]
