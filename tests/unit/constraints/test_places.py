"""Places know the tokens that lead to them."""

import torch
from tests.oracles import path_nodes
from tests.random_trees import random_trees

from mtad.constraints import Places


def test_the_paths_of_a_tree_follow_its_parents() -> None:
    case = random_trees(0, 6, gamma=3, width=4, vocab=7)
    places = Places.of_tree(case.tree)
    for row, nodes in enumerate(case.rows):
        expected = [()] + [tuple(nodes[i].token for i in path_nodes(nodes, node)) for node in range(len(nodes))]
        assert places.paths()[row] == expected


def test_a_full_tree_uses_the_sign_bit() -> None:
    tokens = torch.arange(64).unsqueeze(0)
    places = Places(tokens, torch.tensor([[-1, 0, -(2**63)]]))
    assert places.paths() == [[tuple(range(64)), (), (63,)]]


def test_the_root_has_no_path() -> None:
    assert Places.root(torch.tensor([4, 5])).paths() == [[()], [()]]
