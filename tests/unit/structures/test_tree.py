"""Ancestor bits and tree shapes."""

import numpy as np
import pytest
import torch

from mtad.drafting import chain_tree
from mtad.structures import MAX_TREE_NODES, ancestor_bitmask, ancestor_matrix


def test_bits_and_matrix_equal_walking_up() -> None:
    generator = np.random.default_rng(0)
    parents = np.stack([[generator.integers(-1, node) for node in range(MAX_TREE_NODES)] for _ in range(20)])
    bits = ancestor_bitmask(torch.from_numpy(parents))
    matrix = ancestor_matrix(bits)
    for row, line in enumerate(parents):
        for node in range(MAX_TREE_NODES):
            above, step = set(), node
            while step >= 0:
                above.add(step)
                step = int(line[step])
            assert set(matrix[row, node].nonzero().flatten().tolist()) == above


@pytest.mark.parametrize("length", [1, 2, 63, 64])
def test_a_chain_sees_everything_above_it(length: int) -> None:
    tree = chain_tree(torch.zeros(2, length, dtype=torch.int64), torch.zeros(2, length))
    assert torch.equal(ancestor_matrix(tree.ancestors)[1], torch.ones(length, length).tril().bool())
    assert torch.equal(tree.ancestors, ancestor_bitmask(tree.parents))
    assert tree.winner.tolist() == [length - 1] * 2
    assert (tree.depth, tree.num_nodes, tree.batch_size) == (length, length, 2)


def test_the_depth_is_read_off_when_it_is_not_given() -> None:
    tree = chain_tree(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3))
    tree.depth = -1
    tree.__post_init__()
    assert tree.depth == 3
