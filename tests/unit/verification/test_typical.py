"""Typical acceptance against a slow version and its stated bound."""

import itertools
import math

import numpy as np
import pytest
import torch
from tests.oracles import Array, OracleNode, joint_target, path_nodes
from tests.random_trees import oracle_row, random_trees
from tests.table_models import controls

from mtad.structures import Acceptance, RowSettings
from mtad.verification import TypicalVerifier

EPSILON, DELTA = 0.09, 0.3
SHAPES = [(1, 1, 6), (3, 1, 5), (2, 4, 6), (4, 3, 9)]


def bound(log_probs: Array, epsilon: float, delta: float) -> float:
    entropy = -sum(math.exp(value) * value for value in log_probs if value > -math.inf)
    return min(epsilon, delta * math.exp(-entropy))


def passes(nodes: list[OracleNode], node: int, target: Array, epsilon: float, delta: float, is_greedy: bool) -> bool:
    """Whether every node of the path to `node` passes."""
    for step in path_nodes(nodes, node):
        law, token = target[nodes[step].parent + 1], nodes[step].token
        is_kept = token == law.argmax() if is_greedy else math.exp(law[token]) > bound(law, epsilon, delta)
        if not nodes[step].is_valid or not (nodes[step].is_carried or is_kept):
            return False
    return True


def typical_rule(nodes: list[OracleNode], target: Array, epsilon: float, delta: float, is_greedy: bool) -> int:
    """The deepest node whose path passes, the likeliest among equals."""
    best, best_key = -1, (0, -math.inf)
    for index, node in enumerate(nodes):
        key = (node.depth, joint_target(nodes, index, target))
        if passes(nodes, index, target, epsilon, delta, is_greedy) and key > best_key:
            best, best_key = index, key
    return best


def last_nodes(acceptance: Acceptance) -> list[int]:
    return [max(path, default=-1) for path in acceptance.path_nodes.tolist()]


@pytest.mark.parametrize(("gamma", "width", "vocab"), SHAPES)
@pytest.mark.parametrize(("epsilon", "delta"), [(EPSILON, DELTA), (0.3, 0.9), (0.01, 0.05)])
def test_it_keeps_what_the_slow_version_keeps(gamma: int, width: int, vocab: int, epsilon: float, delta: float) -> None:
    case = random_trees(gamma + width, 60, gamma, width, vocab)
    settings = [RowSettings(seed=row, temperature=float(row % 3 > 0)) for row in range(60)]
    acceptance = TypicalVerifier(epsilon, delta).accept(case.tree, case.target_log_probs, controls(*settings))
    for row, node in enumerate(last_nodes(acceptance)):
        nodes, _, target = oracle_row(case, row)
        assert node == typical_rule(nodes, target, epsilon, delta, row % 3 == 0)


def test_every_kept_token_is_above_the_bound() -> None:
    case = random_trees(9, 400, 3, 3, 8)
    settings = [RowSettings(seed=row) for row in range(400)]
    acceptance = TypicalVerifier(EPSILON, DELTA).accept(case.tree, case.target_log_probs, controls(*settings))
    num_kept = 0
    for row, node in enumerate(last_nodes(acceptance)):
        nodes, _, target = oracle_row(case, row)
        kept = [step for step in path_nodes(nodes, node) if not nodes[step].is_carried]
        for step in kept:
            law = target[nodes[step].parent + 1]
            assert math.exp(law[nodes[step].token]) > bound(law, EPSILON, DELTA)
        assert joint_target(nodes, node, target) > len(kept) * math.log(min(EPSILON, DELTA / 8)) or not kept
        num_kept += len(kept)
    assert num_kept > 400


def test_stricter_bounds_never_keep_more() -> None:
    case = random_trees(10, 200, 3, 3, 8)
    rows = controls(*[RowSettings(seed=row) for row in range(200)])
    lengths = [
        TypicalVerifier(epsilon, delta).accept(case.tree, case.target_log_probs, rows).num_accepted
        for epsilon, delta in ((0.01, 0.1), (0.09, 0.1), (0.09, 0.3), (0.5, 0.3), (0.5, 1.0), (1.0, 1.0))
    ]
    for looser, stricter in itertools.pairwise(lengths):
        assert (stricter <= looser).all()
    assert lengths[-1].sum() < lengths[0].sum()


def test_greedy_rows_draw_the_targets_best_token_next() -> None:
    case = random_trees(11, 50, 3, 3, 6)
    rows = controls(*[RowSettings(seed=row, temperature=0) for row in range(50)])
    acceptance = TypicalVerifier(EPSILON, DELTA).accept(case.tree, case.target_log_probs, rows)
    ends = torch.tensor(last_nodes(acceptance)) + 1
    expected = case.target_log_probs[torch.arange(50), ends].argmax(-1)
    assert acceptance.next_tokens.tolist() == expected.tolist()


def test_the_joint_ratio_is_that_of_the_kept_path() -> None:
    case = random_trees(12, 100, 3, 3, 6)
    rows = controls(*[RowSettings(seed=row) for row in range(100)])
    acceptance = TypicalVerifier(EPSILON, DELTA).accept(case.tree, case.target_log_probs, rows)
    for row, node in enumerate(last_nodes(acceptance)):
        nodes, _, target = oracle_row(case, row)
        expected = joint_target(nodes, node, target) - nodes[node].joint_draft if node >= 0 else 0.0
        assert float(acceptance.joint_log_ratio[row]) == pytest.approx(expected, abs=1e-12)
    assert np.isfinite(acceptance.joint_log_ratio.numpy()).all()
