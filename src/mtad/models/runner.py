"""The common half of every model runner: positions, slots and compaction of a static cache."""

from abc import abstractmethod

import torch
from torch import Tensor

from mtad.errors import UnsupportedModelError
from mtad.models.cached_rows import CachedRows
from mtad.models.forward import ForwardBatch
from mtad.structures.between_calls import between_calls
from mtad.structures.constants import first_numbers
from mtad.structures.tree import TokenTree

PREFILL_CHUNK = 512
"""Prompt tokens per row in one prefill forward."""


class ModelRunner(CachedRows):
    """A causal language model over a cache; see `CachedRows` for its rows and slots.

    Attributes:
        vocab_size: Width of the logits.
        max_positions: Longest sequence the model knows, or None when it has no limit.
        num_layers: Layers that `first_layers` can choose from; 0 where it cannot.
        max_slots: Most slots a row can have, or None when there is no limit but the memory's.
    """

    vocab_size: int
    max_positions: int | None
    num_layers: int = 0
    max_slots: int | None = None

    @property
    def storage(self) -> "ModelRunner":
        """The runner that owns the cache: this one, or one that it wraps."""
        return self

    def prefill(self, token_ids: Tensor, lengths: Tensor, num_shared: int = 0) -> None:
        """Cache the first `lengths` tokens of every row, in chunks; the rows hold none yet.

        Args:
            token_ids: Right-padded prompts, `[batch, tokens]` int64.
            lengths: Tokens to cache per row, `[batch]` int64; may be 0.
            num_shared: Leading tokens that all rows have in common, at most the least of `lengths`; they are computed
                once.
        """
        longest = int(lengths.max())
        if num_shared:
            self._prefill_shared(token_ids, lengths, num_shared)
        self._prefill_from(num_shared, token_ids, lengths, longest)
        self.use.longest = longest

    def _prefill_shared(self, token_ids: Tensor, lengths: Tensor, num_shared: int) -> None:
        """Compute the first tokens in the first row and copy their keys to the others."""
        num_rows = len(token_ids)
        self.use_rows(0, 1, 0)
        self._prefill_from(0, token_ids[:1], lengths[:1].clamp(max=num_shared), num_shared)
        self.use_rows(0, num_rows, num_shared)
        for row in range(1, num_rows):
            self.copy_row(0, row, num_shared)
        self.lengths.fill_(num_shared)

    def _prefill_from(self, first: int, token_ids: Tensor, lengths: Tensor, longest: int) -> None:
        for start in range(first, longest, PREFILL_CHUNK):
            end = min(start + PREFILL_CHUNK, longest)
            self.prefill_chunk(token_ids[:, start:end], (lengths - start).clamp(0, end - start), end)

    def prefill_chunk(self, token_ids: Tensor, counts: Tensor, longest: int) -> None:
        """Cache some more tokens of every row.

        Args:
            token_ids: Right-padded, `[batch, tokens]` int64.
            counts: Tokens to cache per row, `[batch]` int64; may be 0.
            longest: No row has more cached tokens afterwards.
        """
        order = first_numbers(token_ids.shape[1], self.device)
        inside = order < counts.unsqueeze(1)
        positions = self.lengths.unsqueeze(1) + order
        self.forward(
            ForwardBatch(
                tokens=torch.where(inside, token_ids, 0),
                positions=positions,
                slots=torch.where(inside, positions, self.num_slots - 1),
                prefix_lengths=(positions + 1).clamp(max=longest),
                ancestors=torch.zeros_like(positions),
                tree_starts=torch.full_like(self.lengths, self.num_slots),
                num_slots=longest,
                num_logits=1,
            )
        )
        self.lengths.add_(counts)

    def score_root(self, previous: Tensor, pending: Tensor) -> Tensor:
        """Logits after the pending token.

        The token before it is fed again too: when a whole draft was kept, an auxiliary model has not seen it.

        Args:
            previous: Last but one committed token, `[batch]` int64; ignored in rows of one token.
            pending: Last committed token, `[batch]` int64.

        Returns:
            `[batch, vocab]`.
        """
        ends, tokens, positions, prefix_lengths, tree_starts = _root_places(self.lengths, previous, pending)
        batch = ForwardBatch(
            tokens=tokens,
            positions=positions,
            slots=torch.where(ends < 0, self.num_slots - 1, ends),
            prefix_lengths=prefix_lengths,
            ancestors=first_numbers(1, self.device).expand_as(positions),
            tree_starts=tree_starts,
            num_slots=self._visible(1),
            num_logits=1,
        )
        return self.forward(batch)[:, -1]

    def score_level(self, tokens: Tensor, ancestors: Tensor, first_node: int, depth: int) -> Tensor:
        """Logits after each node of one level of a tree whose upper levels were scored before.

        Args:
            tokens: The level's tokens, `[batch, width]` int64.
            ancestors: Their ancestor bits, `[batch, width]` int64.
            first_node: Node index of the level's first slot.
            depth: Depth of the level, 1 below the root.

        Returns:
            `[batch, width, vocab]`.
        """
        base = self.lengths.unsqueeze(1)
        tree_starts = self.lengths + 1
        batch = ForwardBatch(
            tokens=tokens,
            positions=(base + depth).expand_as(tokens),
            slots=base + first_numbers(tokens.shape[1], self.device, 1 + first_node),
            prefix_lengths=tree_starts.unsqueeze(1).expand_as(tokens),
            ancestors=ancestors,
            tree_starts=tree_starts,
            num_slots=self._visible(1 + first_node + tokens.shape[1]),
            num_logits=tokens.shape[1],
        )
        return self.forward(batch)

    def score_tree(self, pending: Tensor, tree: TokenTree) -> Tensor:
        """Logits after the pending token and after every node, in one call.

        Args:
            pending: Last committed token, `[batch]` int64.
            tree: The drafted tree.

        Returns:
            `[batch, 1 + nodes, vocab]`; entry 0 belongs to the pending token.
        """
        tokens, positions, slots, ancestors, tree_starts = _tree_places(
            self.lengths, pending, tree.tokens, tree.depths, tree.ancestors
        )
        batch = ForwardBatch(
            tokens=tokens,
            positions=positions,
            slots=slots,
            prefix_lengths=tree_starts.unsqueeze(1).expand_as(tokens),
            ancestors=ancestors,
            tree_starts=tree_starts,
            num_slots=self._visible(tokens.shape[1]),
            num_logits=tokens.shape[1],
        )
        return self.forward(batch)

    def keep_path(self, path_nodes: Tensor, num_accepted: Tensor, active: Tensor) -> None:
        """Commit the pending token and a path of the last scored tree; moves the path's keys into place.

        Args:
            path_nodes: Node indices, root's child first, `[batch, gamma]` int64; entries behind the path are ignored.
            num_accepted: Nodes to keep per row, `[batch]` int64.
            active: Rows to advance, `[batch]` bool; the others stay as they are.
        """
        depth = path_nodes.shape[1]
        sources, targets, num_new = _kept_places(self.lengths, path_nodes, num_accepted, active)
        if depth:
            self._move_slots(sources, targets)
        self.lengths.add_(num_new)
        self.use.longest += depth + 1

    def refeed(self, token_ids: Tensor, counts: Tensor, longest: int) -> None:
        """Cache the last committed tokens of every row, whose slots may hold nothing, in chunks.

        Args:
            token_ids: Right-padded, `[batch, tokens]` int64.
            counts: Tokens to cache per row, `[batch]` int64; may be 0.
            longest: No row has more committed tokens.
        """
        self.lengths.sub_(counts)
        for start in range(0, token_ids.shape[1], PREFILL_CHUNK):
            part = token_ids[:, start : start + PREFILL_CHUNK]
            self.prefill_chunk(part, (counts - start).clamp(0, part.shape[1]), longest)

    def first_layers(self, count: int) -> "ModelRunner":
        """The model's first layers as a model with a cache of its own, `count` from 1 to `num_layers`.

        Raises:
            UnsupportedModelError: The model has no such layers.
        """
        raise UnsupportedModelError(f"{type(self).__name__} cannot exit early; name a draft model")

    @abstractmethod
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Write the tokens' keys; returns the logits of the last `num_logits` tokens, `[batch, num_logits, vocab]`."""


@between_calls
def _root_places(lengths: Tensor, previous: Tensor, pending: Tensor) -> tuple[Tensor, ...]:
    """Places of the last two tokens, -1 for none, their tokens, positions and prefix lengths, and node 0's slot."""
    ends = torch.stack([lengths - 1, lengths], 1)
    tokens = torch.stack([torch.where(lengths > 0, previous, pending), pending], 1)
    positions = ends.clamp(min=0)
    return ends, tokens, positions, positions + 1, lengths + 1


@between_calls
def _tree_places(
    lengths: Tensor, pending: Tensor, nodes: Tensor, depths: Tensor, ancestors: Tensor
) -> tuple[Tensor, ...]:
    """Tokens, positions, slots and ancestor bits of pending token and nodes, and the slot of node 0."""
    base, first = lengths.unsqueeze(1), pending.unsqueeze(1)
    root = first_numbers(1, lengths.device).expand_as(base)
    if nodes.shape[1] == 0:
        return first, base, base, root, lengths + 1
    tokens = torch.cat([first, nodes], 1)
    slots = base + first_numbers(tokens.shape[1], lengths.device)
    return tokens, base + torch.cat([root, depths], 1), slots, torch.cat([root, ancestors], 1), lengths + 1


@between_calls
def _kept_places(
    lengths: Tensor, path_nodes: Tensor, num_accepted: Tensor, active: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots of the kept nodes, those that they move to, `[batch, gamma]` each, and new tokens of each row."""
    num_new = torch.where(active, num_accepted + 1, 0)
    if path_nodes.shape[1] == 0:
        return path_nodes, path_nodes, num_new
    order = first_numbers(path_nodes.shape[1], lengths.device, 1)
    base = lengths.unsqueeze(1)
    moved = torch.where(order < num_new.unsqueeze(1), path_nodes + 1, order)
    return base + moved, base + order, num_new
