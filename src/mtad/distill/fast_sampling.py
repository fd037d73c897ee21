"""Sampling on CUDA: one captured step for all rows, noise made on the device, and a look from the host now and then."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from mtad.models.graphs import Call, Capture, CudaGraphCapture
from mtad.models.kernels.launch import power_of_two
from mtad.models.runner import ModelRunner
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import TokenTree

_STEPS_A_LOOK = 16
_FEWEST_ROWS = 64
_ROW_STEPS = 8
"""Rows are padded to eighths of the next power of two: few shapes to capture, and few rows that do nothing."""
_PREFILL_TOKENS = 2**16


def samples_fast(target: ModelRunner) -> bool:
    """Whether `DeviceSampler` serves this target, where it is."""
    return isinstance(target, TransformersRunner) and target.can_be_captured and find_spec("triton") is not None


def draw_tokens(logits: Tensor, seed: Tensor, inverse_temperature: Tensor, texts: Tensor, place: Tensor) -> Tensor:
    """One token of every row, drawn from softmax(logits / T); the noise depends on seed, text, place and token alone.

    Args:
        logits: `[rows, vocab]`, each row contiguous.
        seed: `[1]` int64, not negative.
        inverse_temperature: `[1]` float32.
        texts: Number of every row's text, `[rows]` int64, below 2^31.
        place: Place of the token in the texts, `[1]` int64, below 2^31.

    Returns:
        `[rows]` int64.
    """
    from mtad.distill.kernels.drawing import draw_rows

    rows, width = logits.shape
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    block = max(16, min(1024, power_of_two(-(-width // 4))))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        draw_rows[(rows,)](
            logits, drawn, seed, inverse_temperature, texts, place, logits.stride(0), WIDTH=width, BLOCK=block
        )
    return drawn


def no_tree(rows: int, device: torch.device) -> TokenTree:
    """A tree without nodes under every row's pending token."""
    nothing = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    return TokenTree(
        tokens=nothing,
        parents=nothing,
        depths=nothing,
        joint_draft_log_probs=nothing.float(),
        ancestors=nothing,
        winner=torch.full((rows,), -1, device=device),
        valid=nothing.bool(),
        carried=nothing.bool(),
    )


@dataclass(slots=True)
class _Board:
    """What a step reads and writes, where it always is.

    Attributes:
        pending: Last token of every row, `[rows]` int64.
        alive: Rows whose text goes on, `[rows]` bool.
        texts: Number of every row's text, `[rows]` int64; the number behind the last for rows without one.
        answers: Tokens by text and step, -1 where there is none, `[rows + 1, columns]` int64.
        step: `[1]` int64.
        seed: `[1]` int64.
        inverse_temperature: `[1]` float32.
    """

    pending: Tensor
    alive: Tensor
    texts: Tensor
    answers: Tensor
    step: Tensor
    seed: Tensor
    inverse_temperature: Tensor

    @classmethod
    def make(cls, rows: int, columns: int, device: torch.device) -> "_Board":
        numbers = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(
            pending=numbers,
            alive=torch.zeros(rows, dtype=torch.bool, device=device),
            texts=numbers.clone(),
            answers=torch.empty(rows + 1, columns, dtype=torch.int64, device=device),
            step=torch.zeros(1, dtype=torch.int64, device=device),
            seed=torch.zeros(1, dtype=torch.int64, device=device),
            inverse_temperature=torch.zeros(1, device=device),
        )

    def begin(self, seed: int, temperature: float) -> None:
        """No text is there yet."""
        self.pending.zero_()
        self.alive.zero_()
        self.texts.fill_(len(self.texts))
        self.answers.fill_(-1)
        self.step.zero_()
        self.seed.fill_(seed)
        self.inverse_temperature.fill_(1 / temperature)

    def front(self, rows: Tensor) -> None:
        """Bring the named rows to the front; those behind them have no text."""
        count = len(rows)
        for values, nothing in ((self.pending, 0), (self.alive, False), (self.texts, len(self.texts))):
            values[:count] = values[rows]
            values[count:] = nothing


class DeviceSampler:
    """Draws from the target for many rows at once; the host hears of it every few steps.

    A row's noise depends on the seed and the number of its text, so that texts do not depend on how rows are moved
    together when others have ended, up to the rounding of products of another size.

    Args:
        target: With tree attention.
        eos_token_ids: Tokens that end a text; they are kept.
        rows: Texts that are sampled at a time.
        capacity: Tokens of the longest prompt and its answer; more room is made where it does not suffice.
        capture: How steps are captured.
    """

    def __init__(
        self,
        target: TransformersRunner,
        eos_token_ids: Iterable[int],
        *,
        rows: int,
        capacity: int,
        capture: Capture | None = None,
    ) -> None:
        self.target, self.rows, self.capacity = target, power_of_two(rows), capacity
        self._ends = torch.tensor(sorted(eos_token_ids), dtype=torch.int64, device=target.device)
        self._capture = capture or CudaGraphCapture()
        self._board: _Board | None = None
        self._replays: dict[Hashable, Call | None] = {}

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[list[int]], limit: int, temperature: float, generator: torch.Generator
    ) -> list[list[int]]:
        """See `TextSampler.sample`; the generator gives a seed."""
        seed = int(torch.randint(2**62, (1,), generator=generator))
        board = self._make_room(len(prompts), max(len(item) for item in prompts) + limit + 1)
        board.begin(seed, temperature)
        longest = self._prefill(board, prompts)
        num_rows = self._pad(len(prompts))
        self.target.use_rows(0, num_rows, longest)
        self.target.fix_shapes()
        for step in range(limit):
            self._run(board, num_rows)
            if step % _STEPS_A_LOOK == _STEPS_A_LOOK - 1:
                num_rows = self._thin(board, num_rows, longest + step + 1)
            if not num_rows:
                break
        found = board.answers[: len(prompts), :limit].cpu()
        lengths = (found >= 0).sum(1).tolist()
        return [row[:length] for row, length in zip(found.tolist(), lengths, strict=True)]

    def _make_room(self, count: int, capacity: int) -> _Board:
        """Cache and board of the same places as before, unless more is needed."""
        if self._board is None or count > self.rows or capacity > self.capacity:
            self.rows, self.capacity = max(self.rows, power_of_two(count)), max(self.capacity, capacity)
            self._board = _Board.make(self.rows, self.capacity, self.target.device)
            self._replays.clear()
        self.target.allocate(self.rows, self.capacity)
        return self._board

    def _pad(self, count: int) -> int:
        """Rows to compute for so many texts."""
        unit = max(_FEWEST_ROWS, power_of_two(count) // _ROW_STEPS)
        return min(-(-count // unit) * unit, self.rows)

    def _prefill(self, board: _Board, prompts: Sequence[list[int]]) -> int:
        """Cache all prompts, those of like length together; returns the length of the longest."""
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        first = 0
        while first < len(order):
            last = first + 1
            while last < len(order) and (last + 1 - first) * len(prompts[order[last]]) <= _PREFILL_TOKENS:
                last += 1
            chosen = [prompts[number] for number in order[first:last]]
            longest = len(chosen[-1])
            padded = torch.tensor([[*item, *[0] * (longest - len(item))] for item in chosen], device=board.texts.device)
            lengths = torch.tensor([len(item) for item in chosen], device=board.texts.device)
            self.target.use_rows(first, last - first, 0)
            self.target.prefill(padded, lengths - 1)
            board.pending[first:last] = padded.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
            first = last
        board.texts[: len(order)] = torch.tensor(order, device=board.texts.device)
        board.alive[: len(order)] = True
        return len(prompts[order[-1]])

    def _run(self, board: _Board, num_rows: int) -> None:
        """One step: the first of a shape as it is, the second captured, all others replayed."""
        key = (num_rows, self.target.layout())
        if key not in self._replays:
            self._replays[key] = None
            self._step(board, num_rows)
            return
        replay = self._replays[key]
        if replay is None:
            replay = self._replays[key] = self._try_capture(lambda: self._step(board, num_rows))
        replay()

    def _try_capture(self, call: Call) -> Call:
        try:
            return self._capture(call)
        except RuntimeError:
            # Nothing has run on the device, so the call can be made as it is, only slower.
            return call

    def _step(self, board: _Board, num_rows: int) -> Tensor:
        pending, alive, texts = board.pending[:num_rows], board.alive[:num_rows], board.texts[:num_rows]
        tree = no_tree(num_rows, pending.device)
        logits = self.target.score_tree(pending, tree)[:, 0]
        drawn = draw_tokens(logits, board.seed, board.inverse_temperature, texts, board.step)
        self.target.keep_path(tree.tokens, torch.zeros_like(pending), alive)
        # Ended rows write behind the last text.
        columns = board.answers.shape[1]
        places = torch.where(alive, texts, len(board.texts)) * columns + board.step
        board.answers.view(-1).scatter_(0, places, drawn)
        pending.copy_(torch.where(alive, drawn, pending))
        alive.logical_and_((drawn.unsqueeze(1) != self._ends).all(1))
        board.step.add_(1)
        return pending

    def _thin(self, board: _Board, num_rows: int, longest: int) -> int:
        """Move the rows that go on together once enough others have ended; returns how many rows there are."""
        kept = board.alive[:num_rows].nonzero().squeeze(1)
        fewer = self._pad(len(kept))
        if not len(kept) or fewer == num_rows:
            return num_rows if len(kept) else 0
        board.front(kept)
        self.target.front_rows(kept, longest)
        self.target.use_rows(0, fewer, longest)
        return fewer
