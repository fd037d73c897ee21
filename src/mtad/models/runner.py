"""The common half of every model runner: positions, slots and compaction of a static cache."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mtad.errors import CapacityError, UnsupportedModelError, spell_bytes
from mtad.models.forward import ForwardBatch
from mtad.models.graphs import places_of, settle
from mtad.structures.tree import TokenTree

PREFILL_CHUNK = 512
"""Prompt tokens per row in one prefill forward."""


@dataclass(slots=True)
class CacheUse:
    """How a cache is used at the moment; runners that wrap one another share it.

    Attributes:
        all_lengths: Cached committed tokens of every row, `[rows]` int64.
        lengths: Those of the rows in use, a view, `[batch]` int64.
        num_slots: Slots per row.
        longest: No row in use is longer; known on the host.
        has_fixed_shapes: Whether every call is offered all slots.
    """

    all_lengths: Tensor
    lengths: Tensor
    num_slots: int = 0
    longest: int = 0
    has_fixed_shapes: bool = False


class ModelRunner(ABC):
    """A causal language model over a preallocated cache of `capacity` slots per row.

    Slots `[0, lengths)` hold the committed tokens whose keys are known. The newest committed token is *pending*:
    it is fed with the next call, at slot `lengths`; tree node i goes to slot `lengths + 1 + i`. The last slot is
    a waste bin for padding.

    A call concerns all rows of the cache, or neighbouring ones that `use_rows` names; the others stay as they are.

    Attributes:
        vocab_size: Width of the logits.
        device: Where tokens go in and logits come out.
        max_positions: Longest sequence the model knows, or None when it has no limit.
        num_layers: Layers that `first_layers` can choose from; 0 where it cannot.
        max_slots: Most slots a row can have, or None when there is no limit but the memory's.
    """

    vocab_size: int
    device: torch.device
    max_positions: int | None
    num_layers: int = 0
    max_slots: int | None = None

    @cached_property
    def use(self) -> CacheUse:
        """How the cache is used at the moment."""
        nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
        return CacheUse(nothing, nothing)

    @property
    def lengths(self) -> Tensor:
        """Cached committed tokens per row, `[batch]` int64; changed in place by `prefill` and `keep_path`."""
        return self.use.lengths

    @property
    def num_slots(self) -> int:
        """Slots per row."""
        return self.use.num_slots

    @property
    def storage(self) -> "ModelRunner":
        """The runner that owns the cache: this one, or one that it wraps."""
        return self

    def allocate(self, batch_size: int, capacity: int) -> None:
        """Make room for `batch_size` rows of `capacity` tokens, tree nodes included; forgets what was cached.

        A cache at hand that fits is used again, so that it stays where it is; it may then have more slots.

        Raises:
            CapacityError: The memory for the cache is not there.
        """
        use = self.use
        nothing = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        use.all_lengths = use.lengths = settle(use.all_lengths, nothing)
        use.longest, use.has_fixed_shapes = 0, False
        at_hand = self._slots_at_hand(batch_size)
        if capacity < at_hand <= 2 * (capacity + 1):
            use.num_slots = at_hand
            self._use_slots(0, batch_size)
            return
        use.num_slots = capacity + 1
        try:
            self._allocate_slots(batch_size, self.num_slots)
        except (RuntimeError, MemoryError) as error:
            wanted = batch_size * self.num_slots * self.slot_bytes
            size = f" ({spell_bytes(wanted)})" if wanted else ""
            raise CapacityError(
                f"no memory for a cache of {batch_size} rows of {capacity} tokens{size}; "
                "lower --max-new-tokens, the number of prompts per batch, or the prompt length"
            ) from error

    def use_rows(self, first_row: int, num_rows: int, longest: int) -> None:
        """Let every call concern these neighbouring rows alone, until told otherwise or allocated anew.

        Args:
            first_row: The first of them.
            num_rows: How many.
            longest: None of them has more cached tokens.
        """
        self.use.lengths = self.use.all_lengths[first_row : first_row + num_rows]
        self.use.longest = longest
        self._use_slots(first_row, num_rows)

    def begin_row(self, row: int, prompt: Sequence[int], num_cached: int) -> None:
        """Start anew in one row of the whole cache, whose first `num_cached` slots hold the prompt's tokens already."""
        self.use.all_lengths[row] = num_cached

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first slots of one row of the whole cache over those of another."""
        self._copy_slots(source, target, min(num_tokens, self.num_slots))

    def swap_rows(self, first: int, second: int, num_tokens: int) -> None:
        """Exchange two rows of the whole cache, of which neither has more than `num_tokens` cached tokens."""
        self._swap_slots(first, second, min(num_tokens, self.num_slots))
        lengths = self.use.all_lengths
        lengths[[first, second]] = lengths[[second, first]]

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
        order = torch.arange(token_ids.shape[1], device=self.device)
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
        positions = torch.stack([self.lengths - 1, self.lengths], 1)
        slots = torch.where(positions < 0, self.num_slots - 1, positions)
        batch = ForwardBatch(
            tokens=torch.stack([torch.where(self.lengths > 0, previous, pending), pending], 1),
            positions=positions.clamp(min=0),
            slots=slots,
            prefix_lengths=positions.clamp(min=0) + 1,
            ancestors=torch.zeros_like(positions),
            tree_starts=self.lengths + 1,
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
        nodes = torch.arange(first_node, first_node + tokens.shape[1], device=self.device)
        base = self.lengths.unsqueeze(1)
        batch = ForwardBatch(
            tokens=tokens,
            positions=(base + depth).expand_as(tokens),
            slots=base + 1 + nodes,
            prefix_lengths=(base + 1).expand_as(tokens),
            ancestors=ancestors,
            tree_starts=self.lengths + 1,
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
        base = self.lengths.unsqueeze(1)
        tokens = torch.cat([pending.unsqueeze(1), tree.tokens], 1)
        depths = torch.cat([torch.zeros_like(base), tree.depths], 1)
        batch = ForwardBatch(
            tokens=tokens,
            positions=base + depths,
            slots=base + torch.arange(tokens.shape[1], device=self.device),
            prefix_lengths=(base + 1).expand_as(tokens),
            ancestors=torch.cat([torch.zeros_like(base), tree.ancestors], 1),
            tree_starts=self.lengths + 1,
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
        if depth:
            order = torch.arange(depth, device=self.device)
            targets = self.lengths.unsqueeze(1) + 1 + order
            kept = (order < num_accepted.unsqueeze(1)) & active.unsqueeze(1)
            sources = torch.where(kept, self.lengths.unsqueeze(1) + 1 + path_nodes, targets)
            self._move_slots(sources, targets)
        self.lengths.add_(torch.where(active, num_accepted + 1, 0))
        self.use.longest += depth + 1

    def pass_over(self, tokens: Tensor, active: Tensor) -> None:
        """See `RowState.pass_over`: the slots count as committed, and hold nothing until `refeed`."""
        self.lengths.add_(active)
        self.use.longest += 1

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

    def fix_shapes(self) -> None:
        """Offer all slots to every call from now on, so that it can be captured; `allocate` ends that."""
        self.use.has_fixed_shapes = True

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values that are held, once they have been written to."""
        return 0

    @property
    def slot_bytes(self) -> int:
        """See `RowState.slot_bytes`; 0 where it is not known."""
        return 0

    def layout(self) -> tuple[Hashable, ...]:
        """See `RowState.layout`."""
        return (self.num_slots, *places_of([self.lengths]))

    def note_longest(self, longest: int) -> None:
        """Tell the exact length of the longest row, once the host has read it; keeps attention short."""
        self.use.longest = longest

    def _slots_at_hand(self, batch_size: int) -> int:
        """Slots per row of a cache of so many rows that can be used again, 0 for none."""
        return 0

    def _visible(self, num_new: int) -> int:
        """Slots to read when `num_new` tokens follow the committed ones."""
        if self.use.has_fixed_shapes:
            return self.num_slots - 1
        return min(self.use.longest + num_new, self.num_slots - 1)

    @property
    def can_be_captured(self) -> bool:
        """Whether calls with fixed shapes can be captured in a CUDA graph."""
        return False

    def release(self) -> None:
        """Give the cache's memory back; `allocate` comes before the next call."""
        self.use.all_lengths = self.use.lengths = self.use.all_lengths[:0]

    def first_layers(self, count: int) -> "ModelRunner":
        """The model's first layers as a model with a cache of its own, `count` from 1 to `num_layers`.

        Raises:
            UnsupportedModelError: The model has no such layers.
        """
        raise UnsupportedModelError(f"{type(self).__name__} cannot exit early; name a draft model")

    @abstractmethod
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Write the tokens' keys; returns the logits of the last `num_logits` tokens, `[batch, num_logits, vocab]`."""

    def select_rows(self, rows: Tensor) -> None:
        """Keep only the named rows, in that order; `rows` is `[kept]` int64 and may repeat a row."""
        self._select_slots(rows)
        self.use.all_lengths = self.use.lengths = self.lengths[rows]

    @abstractmethod
    def _allocate_slots(self, batch_size: int, num_slots: int) -> None: ...

    @abstractmethod
    def _use_slots(self, first_row: int, num_rows: int) -> None: ...

    @abstractmethod
    def _select_slots(self, rows: Tensor) -> None: ...

    @abstractmethod
    def _copy_slots(self, source: int, target: int, num_slots: int) -> None: ...

    @abstractmethod
    def _swap_slots(self, first: int, second: int, num_slots: int) -> None: ...

    @abstractmethod
    def _move_slots(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slot contents, `[batch, count]` each; sources are read before targets are written."""
