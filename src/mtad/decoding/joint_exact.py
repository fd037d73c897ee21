"""Exact multi-token joint greedy decoding: best-first search for the argmax of a block's joint probability."""

import heapq
from itertools import pairwise
from time import perf_counter

import torch
from torch import Tensor

from mtad.decoding.decoder import Decoder
from mtad.decoding.outcome import RowOutcome, undrafted
from mtad.drafting import chain_tree
from mtad.errors import SearchBudgetError
from mtad.models.runner import ModelRunner


class BlockSearch:
    """Uniform-cost search over the prefixes of one block.

    Joint log-probabilities never rise along a prefix, so the first complete block popped is the optimum. The
    children of a prefix are queued one at a time, best first, which keeps the queue short.

    Args:
        gamma: Tokens per block.
        eos_token_ids: Tokens that complete a block early.
        budget: Prefixes that may be expanded.
    """

    def __init__(self, gamma: int, eos_token_ids: frozenset[int], budget: int) -> None:
        self.gamma = gamma
        self.eos_token_ids = eos_token_ids
        self.budget = budget
        self.num_expanded = 0
        self.block: tuple[int, ...] | None = None
        self.log_probs: tuple[float, ...] = ()
        self._queue: list[tuple[float, tuple[int, ...], int]] = []
        self._children: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._joint: dict[tuple[int, ...], float] = {(): 0.0}

    def next_prefix(self) -> tuple[int, ...] | None:
        """The prefix to score next, or None once the optimum is in `block`.

        Raises:
            SearchBudgetError: The budget is spent.
        """
        if self.num_expanded == 0:
            return ()
        while self.block is None:
            cost, parent, rank = heapq.heappop(self._queue)
            prefix = (*parent, int(self._children[parent][1][rank]))
            self._joint[prefix] = -cost
            self._queue_child(parent, rank + 1)
            if len(prefix) < self.gamma and prefix[-1] not in self.eos_token_ids:
                self._check_budget()
                return prefix
            self.block = prefix
            steps = [self._joint[prefix[:end]] for end in range(len(prefix) + 1)]
            self.log_probs = tuple(after - before for before, after in pairwise(steps))
        return None

    def expand(self, prefix: tuple[int, ...], log_probs: Tensor) -> None:
        """Take in the `[vocab]` natural log-probabilities after `prefix`."""
        self.num_expanded += 1
        values, tokens = log_probs.double().cpu().sort(descending=True, stable=True)
        self._children[prefix] = (values, tokens)
        self._queue_child(prefix, 0)

    def _queue_child(self, parent: tuple[int, ...], rank: int) -> None:
        values = self._children[parent][0]
        if rank < len(values) and values[rank] > -torch.inf:
            heapq.heappush(self._queue, (-(self._joint[parent] + float(values[rank])), parent, rank))

    def _check_budget(self) -> None:
        if self.num_expanded >= self.budget:
            raise SearchBudgetError(
                f"exact joint search expanded {self.num_expanded} prefixes without proving an optimum for "
                f"{self.gamma} tokens; lower --gamma, raise --search-budget, or use a temperature above 0"
            )


class JointExactDecoder(Decoder):
    """Emits the block of gamma tokens of the highest joint target probability (MTJD, Qin et al. 2025).

    Args:
        target: The model.
        gamma: Tokens per block.
        eos_token_ids: Tokens that end a block early.
        search_budget: Prefixes that may be expanded per block.
    """

    def __init__(self, target: ModelRunner, gamma: int, eos_token_ids: frozenset[int], search_budget: int) -> None:
        super().__init__(target, extra_slots=2 * gamma, one_hot_at_zero=False)
        self._block_length = gamma
        self._eos_token_ids = eos_token_ids
        self._search_budget = search_budget

    @torch.inference_mode()
    def step(self, active: list[bool]) -> list[RowOutcome | None]:
        """See `Decoder.step`."""
        started = perf_counter()
        searches = [BlockSearch(self._block_length, self._eos_token_ids, self._search_budget) for _ in active]
        while True:
            prefixes = [search.next_prefix() if on else None for search, on in zip(searches, active, strict=True)]
            if all(prefix is None for prefix in prefixes):
                break
            log_probs = self._score([prefix or () for prefix in prefixes])
            for search, prefix, row_log_probs in zip(searches, prefixes, log_probs, strict=True):
                if prefix is not None:
                    search.expand(prefix, row_log_probs)
        self._commit([search.block or () for search in searches], active)
        self.times.verify_s += perf_counter() - started
        return [
            undrafted(list(search.block or ()), list(search.log_probs), search.num_expanded + 1) if on else None
            for search, on in zip(searches, active, strict=True)
        ]

    def _score(self, prefixes: list[tuple[int, ...]]) -> Tensor:
        """Temperature-1 log-probabilities after one prefix per row, `[batch, vocab]`."""
        logits = self._feed(prefixes, self._block_length - 1)
        ends = torch.tensor([len(prefix) for prefix in prefixes], device=logits.device)
        last = logits[torch.arange(len(prefixes), device=logits.device), ends]
        return (last if last.dtype == torch.float64 else last.float()).log_softmax(-1)

    def _feed(self, prefixes: list[tuple[int, ...]], length: int) -> Tensor:
        """Score one chain per row, padded to `length`, `[batch, 1 + length, vocab]`."""
        rows = [[*prefix, *[0] * (length - len(prefix))] for prefix in prefixes]
        tokens = torch.tensor(rows, dtype=torch.int64, device=self.target.device).view(len(rows), length)
        return self.target.score_tree(self.pending, chain_tree(tokens, tokens.double()))

    def _commit(self, blocks: list[tuple[int, ...]], active: list[bool]) -> None:
        """Feed the blocks once more, so that all but the last token of each is cached."""
        depth = self._block_length - 1
        self._feed([block[:-1] for block in blocks], depth)
        device = self.target.device
        is_active = torch.tensor(active, device=device)
        kept = torch.tensor([max(len(block) - 1, 0) for block in blocks], device=device)
        self.target.keep_path(torch.arange(depth, device=device).expand(len(blocks), -1), kept, is_active)
        self.target.note_longest(int(self.target.lengths.max()))
        tails = [(0, 0, *block)[-2:] for block in blocks]
        last_two = torch.tensor(tails, device=device)
        has_two = torch.tensor([len(block) > 1 for block in blocks], device=device)
        self.previous = torch.where(is_active, torch.where(has_two, last_two[:, 0], self.pending), self.previous)
        self.pending = torch.where(is_active, last_two[:, 1], self.pending)
