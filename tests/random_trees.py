"""Random drafted trees with everything a rule must cope with, as tensors and as oracle nodes."""

from dataclasses import dataclass

import numpy as np
import torch
from tests.oracles import Array, OracleNode

from mtad.structures import TokenTree, ancestor_bitmask


@dataclass
class TreeCase:
    """A batch of random trees, the target's log-probabilities, and the same trees row by row."""

    tree: TokenTree
    target_log_probs: torch.Tensor
    rows: list[list[OracleNode]]

    @property
    def winners(self) -> list[int]:
        winners: list[int] = self.tree.winner.tolist()
        return winners


def random_trees(seed: int, batch: int, gamma: int, width: int, vocab: int) -> TreeCase:
    """Trees with duplicates, carried nodes, invalid subtrees, impossible tokens and winners of wandering slots."""
    generator = np.random.default_rng(seed)
    rows, winners = [], []
    for _ in range(batch):
        nodes = _random_row(generator, gamma, width, vocab)
        deepest = [index for index, node in enumerate(nodes) if node.depth == gamma and node.is_valid]
        rows.append(nodes)
        winners.append(int(generator.choice(deepest)))
    target = np.log(generator.dirichlet(np.ones(vocab), size=(batch, 1 + gamma * width)))
    target[generator.random(target.shape) < 0.1] = -np.inf
    target[..., 0] = np.log(0.2)
    return TreeCase(as_tree(rows, winners, gamma, width), torch.from_numpy(target), rows)


def _random_row(generator: np.random.Generator, gamma: int, width: int, vocab: int) -> list[OracleNode]:
    nodes: list[OracleNode] = []
    for depth in range(1, gamma + 1):
        level = list(range((depth - 2) * width, (depth - 1) * width)) if depth > 1 else [-1]
        grown = [_random_node(generator, nodes, int(generator.choice(level)), depth, vocab) for _ in range(width)]
        if width > 1 and generator.random() < 0.3:
            grown[0] = grown[1]
        if not any(node.is_valid for node in grown):
            parent = next(index for index in level if index < 0 or nodes[index].is_valid)
            grown[-1] = OracleNode(0, parent, depth, -1.0 * depth, is_valid=True, is_carried=False)
        nodes.extend(grown)
    return nodes


def _random_node(
    generator: np.random.Generator, nodes: list[OracleNode], parent: int, depth: int, vocab: int
) -> OracleNode:
    token = int(generator.integers(vocab))
    above = nodes[parent] if parent >= 0 else OracleNode(0, -1, 0, 0.0, is_valid=True, is_carried=False)
    if not above.is_valid or generator.random() < 0.1:
        return OracleNode(token, parent, depth, -np.inf, is_valid=False, is_carried=False)
    if parent >= 0 and (above.is_carried or generator.random() < 0.15):
        return OracleNode(above.token, parent, depth, above.joint_draft, is_valid=True, is_carried=True)
    joint = above.joint_draft - float(generator.exponential(1.5))
    return OracleNode(token, parent, depth, joint, is_valid=True, is_carried=False)


def as_tree(rows: list[list[OracleNode]], winners: list[int], gamma: int, width: int) -> TokenTree:
    """The tensors of these nodes."""
    parents = torch.tensor([[node.parent for node in row] for row in rows])
    return TokenTree(
        tokens=torch.tensor([[node.token for node in row] for row in rows]),
        parents=parents,
        depths=torch.arange(1, gamma + 1).repeat_interleave(width),
        joint_draft_log_probs=torch.tensor([[node.joint_draft for node in row] for row in rows], dtype=torch.float64),
        ancestors=ancestor_bitmask(parents),
        winner=torch.tensor(winners),
        valid=torch.tensor([[node.is_valid for node in row] for row in rows]),
        carried=torch.tensor([[node.is_carried for node in row] for row in rows]),
    )


def oracle_row(case: TreeCase, row: int) -> tuple[list[OracleNode], int, Array]:
    """Nodes, winner and target log-probabilities of one row."""
    target: Array = case.target_log_probs[row].numpy()
    return case.rows[row], case.winners[row], target
