"""Slow, obviously right NumPy versions of what the package does with tensors."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Path = tuple[int, ...]
Law = Callable[[Path], Array]
"""Natural log-probabilities of the next token after a path of tokens."""


def log_softmax(logits: Array) -> Array:
    top = logits.max()
    result: Array = logits - top - np.log(np.exp(logits - top).sum())
    return result


def warp(logits: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Array:
    """Temperature, then top-k, top-p and min-p, then normalisation, for logits without ties."""
    scores = log_softmax(logits / temperature)
    order = np.argsort(-scores)
    if top_k:
        scores[order[top_k:]] = -np.inf
    scores = log_softmax(scores)
    if top_p < 1:
        mass = 0.0
        for rank, token in enumerate(order):
            if rank and mass >= top_p:
                scores[token] = -np.inf
            mass += math.exp(scores[token])
    scores[np.exp(scores) < min_p * math.exp(scores.max())] = -np.inf
    return log_softmax(scores)


def table_logits(table: Array, sequence: Sequence[int]) -> Array:
    """Logits of a table model after a sequence, read as padded with token 0 on the left."""
    order = table.ndim - 1
    context = ([0] * order + list(sequence))[-order:]
    row: Array = table[tuple(context)]
    return row


def sequence_log_probs(law: Law, tokens: Sequence[int]) -> list[float]:
    """Natural log-probability of each token after those before it."""
    return [float(law(tuple(tokens[:end]))[token]) for end, token in enumerate(tokens)]


def invert(log_probs: Array, uniform: float) -> int:
    """The category whose slice of the cumulative distribution holds `uniform`."""
    probs = np.exp(log_probs)
    cumulative = np.cumsum(probs) / probs.sum()
    return int(np.argmax(cumulative > uniform))


def invert_without_replacement(log_probs: Array, uniforms: Sequence[float]) -> list[int]:
    remaining = log_probs.copy()
    drawn = []
    for uniform in uniforms:
        if np.isneginf(remaining).all():
            drawn.append(-1)
            continue
        drawn.append(invert(remaining - remaining.max(), uniform))
        remaining[drawn[-1]] = -np.inf
    return drawn


def plackett_luce(probs: Array, order: Sequence[int]) -> float:
    """Probability of drawing these categories in this order without replacement."""
    left, result = 1.0, 1.0
    for category in order:
        result *= float(probs[category]) / left
        left -= float(probs[category])
    return result


def enumerate_blocks(law: Law, gamma: int, eos: frozenset[int] = frozenset()) -> Iterator[tuple[Path, float]]:
    """Every block of gamma tokens, or shorter when it ends in EOS, with its joint natural log-probability."""

    def grow(path: Path, joint: float) -> Iterator[tuple[Path, float]]:
        if len(path) == gamma or (path and path[-1] in eos):
            yield path, joint
            return
        for token, log_prob in enumerate(law(path)):
            yield from grow((*path, token), joint + float(log_prob))

    yield from grow((), 0.0)


@dataclass
class Beam:
    """One beam: its tokens (EOS repeated once it is carried), its joint natural log-probability, its weight."""

    path: Path
    joint: float
    weight: float
    is_finished: bool = False
    is_carried: bool = False


Pick = Callable[[Array, int], Sequence[int]]
"""Chooses candidates by index from log weights at a depth; -1 for none."""


def beam_levels(law: Law, gamma: int, eos: frozenset[int], pick: Pick) -> list[list[Beam]]:
    """Beam sampling as the definitions say it; candidates lie by beam, then from likely to unlikely."""
    beams = [Beam((), 0.0, 1.0)]
    levels = []
    for depth in range(1, gamma + 1):
        candidates = [candidate for beam in beams for candidate in _candidates(beam, law, eos)]
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.array([candidate.weight for candidate in candidates]))
        chosen = [candidates[index] for index in pick(log_weights, depth) if index >= 0]
        total = sum(beam.weight for beam in chosen)
        beams = [Beam(b.path, b.joint, b.weight / total, b.is_finished, b.is_carried) for b in chosen]
        levels.append(beams)
    return levels


def _candidates(beam: Beam, law: Law, eos: frozenset[int]) -> list[Beam]:
    if beam.is_finished:
        return [Beam((*beam.path, beam.path[-1]), beam.joint, beam.weight, is_finished=True, is_carried=True)]
    log_probs = law(beam.path)
    return [
        Beam(
            (*beam.path, int(token)),
            beam.joint + float(log_probs[token]),
            beam.weight * math.exp(log_probs[token]),
            is_finished=int(token) in eos,
        )
        for token in np.argsort(-log_probs)
    ]


@dataclass
class OracleNode:
    """One drafted node of one row."""

    token: int
    parent: int
    depth: int
    joint_draft: float
    is_valid: bool
    is_carried: bool


def path_nodes(nodes: Sequence[OracleNode], node: int) -> list[int]:
    """Nodes from the root's child down to `node`."""
    path = []
    while node >= 0:
        path.append(node)
        node = nodes[node].parent
    return path[::-1]


def joint_target(nodes: Sequence[OracleNode], node: int, target: Array) -> float:
    """log P of the path to a node; row 0 of `target` lies after the root, row i + 1 after node i."""
    steps = [
        0.0 if nodes[step].is_carried else float(target[nodes[step].parent + 1, nodes[step].token])
        for step in path_nodes(nodes, node)
    ]
    return sum(steps)


def joint_rule(nodes: Sequence[OracleNode], winner: int, target: Array, log_threshold: float) -> tuple[int, float]:
    """The node the joint rule keeps, -1 for none, and its log P - log Q of the winner's prefix."""
    reference = {nodes[step].depth: nodes[step].joint_draft for step in path_nodes(nodes, winner)}
    best, best_key, best_ratio = -1, (0, -math.inf), 0.0
    for index, node in enumerate(nodes):
        if not node.is_valid:
            continue
        joint = joint_target(nodes, index, target)
        ratio = joint - reference[node.depth]
        if ratio > log_threshold and (node.depth, joint) > best_key:
            best, best_key, best_ratio = index, (node.depth, joint), ratio
    return best, best_ratio


def largest_distance(num_cells: int, num_draws: int, odds: float) -> float:
    """L1 distance to the true law that an empirical law exceeds with probability at most `odds`.

    Weissman et al. 2003: P(L1 >= e) <= (2^cells - 2) exp(-draws e^2 / 2).
    """
    return math.sqrt(2 * (num_cells * math.log(2) - math.log(odds)) / num_draws)


def empirical_distance(draws: Sequence[Path], law: dict[Path, float]) -> float:
    """L1 distance between the frequencies of `draws` and a law over the same cells."""
    counts = dict.fromkeys(law, 0)
    for draw in draws:
        counts[draw] += 1
    return sum(abs(counts[cell] / len(draws) - prob) for cell, prob in law.items())


def all_paths(vocab: int, length: int) -> list[Path]:
    return list(itertools.product(range(vocab), repeat=length))
