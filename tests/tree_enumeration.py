"""Every tree that a branching drafter can draw, and every decision that a lossless tree rule can take on it.

Both rules test one node after another, each against a chance that is known once those before it were rejected or
accepted. The slow versions here list all sequences of such tests; the rule itself is then asked at both ends of every
sequence's box of random numbers, so that a chance which the rule sets elsewhere is found.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tests.enumeration import CORNER, Drafts, Outcome, Probe, completed_law, kept_paths
from tests.oracles import Array, Law, Path

from mtad.structures import TokenTree, ancestor_bitmask


@dataclass
class DraftedTree:
    """One draft; node 0 is the root here, so node i + 1 is slot i of the tensors.

    Attributes:
        tokens: Token of each node, -1 for the root and for nodes that do not exist.
        parents: Parent of each node.
        target: The target's law after each node, linear.
        draft: The draft's law after each node, linear.
        has_replacement: How siblings were drawn.
        weight: Probability of this draft.
    """

    tokens: list[int]
    parents: list[int]
    target: list[Array]
    draft: list[Array]
    has_replacement: bool
    weight: float

    def children(self, node: int) -> list[int]:
        return [
            child for child in range(1, len(self.tokens)) if self.parents[child] == node and self.tokens[child] >= 0
        ]

    def depth(self, node: int) -> int:
        return 0 if node == 0 else 1 + self.depth(self.parents[node])


@dataclass
class Decision:
    """One way a rule can go: tests of nodes with their chances and results, the node kept, the law after it."""

    tests: list[tuple[int, float, bool]]
    probability: float
    node: int
    law: Array


Decide = Callable[[DraftedTree], Iterator[Decision]]


def sibling_draws(probs: Array, count: int, *, has_replacement: bool) -> list[tuple[Path, float]]:
    """Every sequence of `count` draws with its probability; -1 where nothing is left to draw."""
    draws: list[tuple[Path, float]] = []
    for choice in itertools.product(range(len(probs)), repeat=count):
        left, weight = probs, 1.0
        sequence: Path = ()
        for token in choice:
            if left.sum() <= 0:
                sequence = (*sequence, -1)
                continue
            weight *= float(left[token] / left.sum())
            sequence = (*sequence, token)
            left = left if has_replacement else without(left, token)
        if weight > 0:
            draws.append((sequence, weight))
    return list(dict(draws).items())


def without(probs: Array, token: int) -> Array:
    """The law without a token, not normalised."""
    rest = probs.copy()
    rest[token] = 0.0
    return rest


def drafted_trees(
    target: Law,
    draft: Law,
    branching: Sequence[int],
    *,
    has_replacement: bool,
    ends: Callable[[Path], bool] = lambda path: False,
) -> list[DraftedTree]:
    """Every draft with positive probability; nothing is drafted behind a path that `ends`."""
    parents = layout(branching)
    partial: list[tuple[list[Path | None], float]] = [([()], 1.0)]
    for node in range(len(parents)):
        count = parents.count(node)
        if count:
            partial = [
                ([*paths, *children], weight * chance)
                for paths, weight in partial
                for children, chance in _children(paths[node], draft, count, has_replacement=has_replacement, ends=ends)
            ]
    return [
        DraftedTree(
            tokens=[path[-1] if path else -1 for path in paths],
            parents=parents,
            target=[np.exp(target(path or ())) for path in paths],
            draft=[np.exp(draft(path or ())) for path in paths],
            has_replacement=has_replacement,
            weight=weight,
        )
        for paths, weight in partial
    ]


def layout(branching: Sequence[int]) -> list[int]:
    """Parent of every node in level order, the root first."""
    parents, level = [-1], [0]
    for count in branching:
        first = len(parents)
        parents += [parent for parent in level for _ in range(count)]
        level = list(range(first, len(parents)))
    return parents


def _children(
    path: Path | None, draft: Law, count: int, *, has_replacement: bool, ends: Callable[[Path], bool]
) -> list[tuple[list[Path | None], float]]:
    if path is None or ends(path):
        return [([None] * count, 1.0)]
    draws = sibling_draws(np.exp(draft(path)), count, has_replacement=has_replacement)
    return [([(*path, token) if token >= 0 else None for token in tokens], weight) for tokens, weight in draws]


def as_drafts(trees: list[DraftedTree], branching: Sequence[int]) -> Drafts:
    """The tensors of these drafts, one row each."""
    parents = torch.tensor([tree.parents[1:] for tree in trees]) - 1
    tokens = torch.tensor([tree.tokens[1:] for tree in trees])
    with np.errstate(divide="ignore"):
        target = np.log(np.array([tree.target for tree in trees]))
        draft = np.log(np.array([tree.draft for tree in trees]))
    drawn = torch.from_numpy(draft)[torch.arange(len(trees)).unsqueeze(1), parents + 1]
    step = drawn.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(tokens < 0, -torch.inf)
    joint = step.clone()
    for node in range(parents.shape[1]):
        above = parents[:, node : node + 1]
        joint[:, node] += torch.where(above < 0, 0.0, joint.gather(1, above.clamp(min=0))).squeeze(1)
    depths = torch.tensor([trees[0].depth(node) for node in range(1, len(trees[0].tokens))])
    tree = TokenTree(
        tokens=tokens.clamp(min=0),
        parents=parents,
        depths=depths,
        joint_draft_log_probs=joint,
        ancestors=ancestor_bitmask(parents),
        winner=torch.full_like(tokens[:, 0], tokens.shape[1] - 1),
        valid=tokens >= 0,
        carried=torch.zeros_like(tokens, dtype=torch.bool),
        draft_log_probs=drawn,
        branching=tuple(branching),
        has_replacement=trees[0].has_replacement,
    )
    return Drafts(tree, torch.from_numpy(target), np.array([tree.weight for tree in trees]))


def rejection_decisions(tree: DraftedTree) -> Iterator[Decision]:
    """Recursive rejection from the root down, as the papers say it."""

    def visit(node: int, tests: list[tuple[int, float, bool]], probability: float) -> Iterator[Decision]:
        target, draft = tree.target[node], tree.draft[node]
        for child in tree.children(node):
            token = tree.tokens[child]
            chance = min(1.0, float(target[token] / draft[token]))
            yield from visit(child, [*tests, (child, chance, True)], probability * chance)
            tests, probability = [*tests, (child, chance, False)], probability * (1 - chance)
            if probability <= 0:
                return
            target, _ = normalised(np.maximum(target - draft, 0), target)
            draft = draft if tree.has_replacement else normalised(without(draft, token), draft)[0]
        if probability > 0:
            yield Decision(tests, probability, node, target)

    yield from visit(0, [], 1.0)


def traversal_decisions(tree: DraftedTree) -> Iterator[Decision]:
    """Leaf to root: judge the first leaf, take it off and correct its parent, until a leaf is accepted."""
    target, draft = list(tree.target), list(tree.draft)
    corrected: dict[int, float] = {}
    removed: set[int] = set()

    def left(node: int) -> list[int]:
        return [child for child in tree.children(node) if child not in removed]

    def chance(node: int) -> float:
        if node == 0 or node in corrected:
            return corrected.get(node, 1.0)
        parent, token = tree.parents[node], tree.tokens[node]
        return min(1.0, chance(parent) * float(target[parent][token] / draft[parent][token]))

    tests: list[tuple[int, float, bool]] = []
    probability = 1.0
    while probability > 0:
        leaf = 0
        while left(leaf):
            leaf = left(leaf)[0]
        own = chance(leaf)
        yield Decision([*tests, (leaf, own, True)] if leaf else tests, probability * own, leaf, target[leaf])
        if leaf == 0:
            return
        tests, probability = [*tests, (leaf, own, False)], probability * (1 - own)
        parent = tree.parents[leaf]
        weight = chance(parent)
        rest = np.maximum(weight * target[parent] - draft[parent], 0)
        target[parent], mass = normalised(rest, target[parent])
        corrected[parent] = mass / (mass + 1 - weight) if mass + 1 > weight else 1.0
        if not tree.has_replacement:
            draft[parent] = normalised(without(draft[parent], tree.tokens[leaf]), draft[parent])[0]
        removed.add(leaf)


def normalised(weights: Array, otherwise: Array) -> tuple[Array, float]:
    """Weights divided by their sum, and the sum; another law where the sum is 0."""
    mass = float(weights.sum())
    return (weights / mass if mass > 0 else otherwise), mass


def tree_law(trees: list[DraftedTree], decide: Decide) -> list[Outcome]:
    """Kept tokens and next-token probabilities of the slow rule itself."""
    return [
        (tokens_to(tree, decision.node), tree.weight * decision.probability * decision.law)
        for tree in trees
        for decision in decide(tree)
    ]


def expected_length(trees: list[DraftedTree], decide: Decide) -> float:
    """Drafted tokens kept on average."""
    return sum(
        tree.weight * decision.probability * tree.depth(decision.node) for tree in trees for decision in decide(tree)
    )


def tokens_to(tree: DraftedTree, node: int) -> Path:
    return () if node == 0 else (*tokens_to(tree, tree.parents[node]), tree.tokens[node])


def emitted(
    probe: Probe, trees: list[DraftedTree], branching: Sequence[int], decide: Decide, target: Law
) -> tuple[dict[Path, float], float]:
    """Law of depth + 1 tokens and expected number of kept tokens of the tensor rule, by the slow rule's boxes."""
    decisions = [(row, decision) for row, tree in enumerate(trees) for decision in decide(tree) if is_wide(decision)]
    corners = [(row, decision, at_low) for row, decision in decisions for at_low in (True, False)]
    num_nodes = len(trees[0].tokens) - 1
    points = [corner(decision, num_nodes, at_low=at_low) for _, decision, at_low in corners]
    asked = as_drafts(trees, branching).take([row for row, _, _ in corners])
    acceptance, following = probe.ask(asked, {0: torch.tensor(points, dtype=torch.float64)})
    weights = asked.weights * np.array([decision.probability / 2 for _, decision, _ in corners])
    outcomes = zip(kept_paths(asked.tree, acceptance), weights[:, None] * following, strict=True)
    length = float((weights * acceptance.num_accepted.numpy()).sum())
    return completed_law(outcomes, target, following.shape[1], len(branching) + 1), length


def is_wide(decision: Decision) -> bool:
    """Whether every side of the box holds points that are not on its border."""
    return all((chance if passed else 1 - chance) > 2 * CORNER for _, chance, passed in decision.tests)


def corner(decision: Decision, num_nodes: int, *, at_low: bool) -> list[float]:
    """Random numbers at the low or the high end of a decision's box, anything for nodes that are not tested."""
    numbers = [CORNER if at_low else 1 - CORNER] * num_nodes
    for node, chance, passed in decision.tests:
        low, high = (0.0, chance) if passed else (chance, 1.0)
        numbers[node - 1] = low + CORNER if at_low else high - CORNER
    return numbers
