"""Exact laws of what a rule emits: every draft, every cell of its random numbers, every next token.

A rule's decision is constant on cells of the unit cube of its random numbers. The borders of the cells come from a slow
version of the rule; the rule itself is asked just inside every corner of every cell, so a border that the rule
draws elsewhere is found, and the cells' volumes make the law exact.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.oracles import Array, Law, Path, all_paths, log_softmax
from tests.table_models import seeded_controls
from torch import Tensor

from mtad.drafting import chain_tree
from mtad.sampling import Stream
from mtad.structures import Acceptance, RowControls, RowSettings, TokenTree
from mtad.verification import Verifier

CORNER = 1e-9
"""How far inside a cell its corners are probed; narrower cells are left out."""

Outcome = tuple[Path, Array]
"""Kept tokens, and probabilities of every (kept tokens, next token) pair, `[vocab]`."""


def random_law(seed: int, vocab: int, zeros: float = 0.0) -> Law:
    """A random next-token law that depends on the whole path; `zeros` is the share of impossible tokens."""

    @functools.cache
    def law(path: Path) -> Array:
        generator = np.random.default_rng([seed, len(path), *path])
        logits = 1.5 * generator.standard_normal(vocab)
        impossible = generator.random(vocab) < zeros
        impossible[generator.integers(vocab)] = False
        logits[impossible] = -np.inf
        return log_softmax(logits)

    return law


def joint_probability(law: Law, path: Path) -> float:
    return float(np.prod([np.exp(law(path[:end])[token]) for end, token in enumerate(path)]))


def block_law(law: Law, vocab: int, length: int) -> dict[Path, float]:
    """Probability of every block of `length` tokens."""
    return {path: joint_probability(law, path) for path in all_paths(vocab, length)}


def completed_law(outcomes: Iterable[Outcome], law: Law, vocab: int, length: int) -> dict[Path, float]:
    """Law of `length` tokens: kept tokens and the next one, then plain tokens of `law`."""
    blocks: dict[Path, Array] = defaultdict(lambda: np.zeros(vocab))
    for kept, following in outcomes:
        blocks[kept] = blocks[kept] + following
    result = {}
    for path in all_paths(vocab, length):
        result[path] = sum(
            float(blocks[path[:end]][path[end]]) * _continuation(law, path, end + 1)
            for end in range(length)
            if path[:end] in blocks
        )
    return result


def _continuation(law: Law, path: Path, start: int) -> float:
    return float(np.prod([np.exp(law(path[:end])[path[end]]) for end in range(start, len(path))]))


def largest_deviation(law: dict[Path, float], other: dict[Path, float]) -> float:
    return max(abs(prob - other[path]) for path, prob in law.items())


@dataclass
class Drafts:
    """Every draft as one row of a batch.

    Attributes:
        tree: The drafts.
        target_log_probs: `[drafts, 1 + nodes, vocab]` float64.
        weights: Probability of each draft, `[drafts]`.
    """

    tree: TokenTree
    target_log_probs: Tensor
    weights: Array

    def take(self, rows: Sequence[int]) -> "Drafts":
        """The drafts of these rows, which may repeat."""
        tree, index = self.tree, torch.tensor(rows)
        picked = TokenTree(
            tokens=tree.tokens[index],
            parents=tree.parents[index],
            depths=tree.depths.expand_as(tree.tokens)[index],
            joint_draft_log_probs=tree.joint_draft_log_probs[index],
            ancestors=tree.ancestors[index],
            winner=tree.winner[index],
            valid=tree.valid[index],
            carried=tree.carried[index],
            draft_log_probs=None if tree.draft_log_probs is None else tree.draft_log_probs[index],
            branching=tree.branching,
            has_replacement=tree.has_replacement,
            depth=tree.depth,
        )
        return Drafts(picked, self.target_log_probs[index], self.weights[rows])


def chain_drafts(target: Law, draft: Law, vocab: int, gamma: int) -> Drafts:
    """Every chain of gamma tokens that the draft's law can draw."""
    paths = [path for path in all_paths(vocab, gamma) if joint_probability(draft, path) > 0]
    tokens = torch.tensor(paths)
    scored = np.stack([[target(path[:end]) for end in range(gamma + 1)] for path in paths])
    drawn = torch.from_numpy(np.stack([[draft(path[:end]) for end in range(gamma)] for path in paths]))
    joint = drawn.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).cumsum(1)
    weights = np.array([joint_probability(draft, path) for path in paths])
    return Drafts(chain_tree(tokens, joint, drawn), torch.from_numpy(scored), weights)


class Probe:
    """Asks a rule what it does at chosen random numbers, and what its next token's law is there.

    Args:
        monkeypatch: Puts the numbers and the recorder in place of the rule's own.
        rule: The rule.
        module: Where the rule takes `uniform` and `draw_next_token` from.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rule: Verifier, module: str) -> None:
        self.rule = rule
        self._columns: dict[int, Tensor] = {}
        self._next_log_probs = torch.empty(0)
        self._monkeypatch = monkeypatch
        self._places = (module, "mtad.verification.base")

    def ask(self, drafts: Drafts, numbers: dict[int, Tensor]) -> tuple[Acceptance, Array]:
        """The decision, and the law of the next token, `[drafts, vocab]`.

        Args:
            drafts: One draft per row.
            numbers: What `uniform` gives for each of its `depth` arguments, `[drafts, count]` float64.
        """
        self._columns = numbers
        rows = seeded_controls(RowSettings(), torch.zeros(len(drafts.weights), dtype=torch.int64))
        with self._monkeypatch.context() as patch:
            for place in self._places:
                patch.setattr(f"{place}.draw_next_token", self._record, raising=False)
                patch.setattr(f"{place}.uniform", self._numbers, raising=False)
            acceptance = self.rule.accept(drafts.tree, drafts.target_log_probs, rows)
        law: Array = self._next_log_probs.softmax(-1).numpy()
        return acceptance, law

    def _numbers(self, rows: RowControls, stream: Stream, depth: int, count: int) -> Tensor:
        assert stream == Stream.ACCEPT
        assert self._columns[depth].shape == (len(rows.seeds), count)
        return self._columns[depth]

    def _record(self, log_probs: Tensor, rows: RowControls) -> Tensor:
        self._next_log_probs = log_probs
        return log_probs.argmax(-1)


@dataclass
class Cells:
    """Corners of the cells of several unit cubes.

    Attributes:
        owners: Which cube each corner belongs to.
        points: Random numbers of each corner, `[corners, dimensions]` float64.
        volumes: Share of the cube that each corner stands for; those of one cube sum to one.
    """

    owners: list[int]
    points: Tensor
    volumes: Array


def cells(borders: Sequence[Sequence[Sequence[float]]]) -> Cells:
    """Both ends of every interval between borders, multiplied over the dimensions, for every cube."""
    owners, points, volumes = [], [], []
    for cube, dimensions in enumerate(borders):
        for corner in itertools.product(*(_ends(inner) for inner in dimensions)):
            owners.append(cube)
            points.append([point for point, _ in corner])
            volumes.append(float(np.prod([length for _, length in corner])))
    return Cells(owners, torch.tensor(points, dtype=torch.float64), np.array(volumes))


def _ends(inner: Sequence[float]) -> list[tuple[float, float]]:
    """Points just inside both ends of every interval, each with half the interval's length."""
    edges = [0.0, *sorted({border for border in inner if 0 < border < 1}), 1.0]
    ends = []
    for low, high in itertools.pairwise(edges):
        if high - low > 2 * CORNER:
            ends += [(low + CORNER, (high - low) / 2), (high - CORNER, (high - low) / 2)]
    return ends


def kept_paths(tree: TokenTree, acceptance: Acceptance) -> list[Path]:
    """The kept tokens of every row."""
    paths = []
    for row, count in enumerate(acceptance.num_accepted.tolist()):
        nodes = acceptance.path_nodes[row, :count]
        paths.append(tuple(tree.tokens[row, nodes].tolist()))
    return paths
