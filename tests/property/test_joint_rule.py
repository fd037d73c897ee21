"""The joint rule against its definition on thousands of random trees."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import invert, joint_rule, joint_target, path_nodes
from tests.random_trees import TreeCase, oracle_row, random_trees
from tests.table_models import controls
from torch import Tensor

from mtad.sampling import Stream, uniform
from mtad.structures import Acceptance, RowControls, RowSettings
from mtad.verification import JointVerifier
from mtad.verification.base import joint_target_log_probs

SHAPES = [(1, 1), (4, 1), (1, 4), (3, 2), (4, 4), (2, 7), (16, 4), (64, 1)]
BATCH = 100


def random_rows(seed: int, batch: int) -> RowControls:
    generator = np.random.default_rng(seed + 1)
    thresholds = np.clip(10 ** generator.uniform(-4, 0, batch), 0, 1)
    thresholds[generator.random(batch) < 0.1] = 1.0
    greedy = generator.random(batch) < 0.2
    return controls(
        *[
            RowSettings(seed=row, threshold=float(threshold), temperature=0.0 if is_greedy else 1.0)
            for row, (threshold, is_greedy) in enumerate(zip(thresholds, greedy, strict=True))
        ]
    )


def with_threshold(rows: RowControls, threshold: float) -> RowControls:
    same = [RowSettings(seed=int(seed), threshold=threshold) for seed in rows.seeds]
    return controls(*same)


def accept(case: TreeCase, rows: RowControls) -> Acceptance:
    return JointVerifier().accept(case.tree, case.target_log_probs, rows)


def kept_tokens(case: TreeCase, acceptance: Acceptance, row: int) -> list[int]:
    path = acceptance.path_nodes[row, : int(acceptance.num_accepted[row])].tolist()
    return [case.rows[row][node].token for node in path]


def next_token(log_probs: Tensor, rows: RowControls, row: int) -> int:
    if bool(rows.is_greedy[row]):
        return int(log_probs.argmax())
    number = uniform(rows, Stream.NEXT_TOKEN, 0, 1)[row]
    return invert(log_probs.numpy(), float(number))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [1, 2])
def test_equals_the_definition(shape: tuple[int, int], seed: int) -> None:
    case = random_trees(seed, BATCH, *shape, vocab=5)
    rows = random_rows(seed, BATCH)
    acceptance = accept(case, rows)
    num_kept = 0
    for row in range(BATCH):
        nodes, winner, target = oracle_row(case, row)
        node, ratio = joint_rule(nodes, winner, target, float(rows.log_thresholds[row]))
        expected = path_nodes(nodes, node)
        # Twin nodes of one path are interchangeable, so tokens are compared and not node numbers.
        assert kept_tokens(case, acceptance, row) == [nodes[step].token for step in expected]
        assert int(acceptance.num_accepted[row]) == len(expected)
        assert acceptance.path_nodes[row, len(expected) :].tolist() == [-1] * (shape[0] - len(expected))
        assert float(acceptance.joint_log_ratio[row]) == pytest.approx(ratio, abs=1e-9)
        kept = int(acceptance.path_nodes[row, len(expected) - 1]) if expected else -1
        assert path_nodes(nodes, kept) == acceptance.path_nodes[row, : len(expected)].tolist()
        assert int(acceptance.next_tokens[row]) == next_token(case.target_log_probs[row, kept + 1], rows, row)
        num_kept += bool(expected)
    assert num_kept > 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), gamma=st.integers(1, 5), width=st.integers(1, 5), vocab=st.integers(2, 8))
def test_each_block_keeps_its_guarantee(seed: int, gamma: int, width: int, vocab: int) -> None:
    case = random_trees(seed, 16, gamma, width, vocab)
    rows = random_rows(seed, 16)
    acceptance = accept(case, rows)
    for row in range(16):
        nodes, winner, target = oracle_row(case, row)
        length = int(acceptance.num_accepted[row])
        if length == 0:
            assert float(acceptance.joint_log_ratio[row]) == 0
            continue
        kept = int(acceptance.path_nodes[row, length - 1])
        reference = nodes[path_nodes(nodes, winner)[length - 1]].joint_draft
        assert nodes[kept].is_valid
        assert joint_target(nodes, kept, target) > reference + math.log(float(rows.log_thresholds[row].exp())) - 1e-6


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), gamma=st.integers(1, 5), width=st.integers(1, 5))
def test_the_kept_length_never_grows_with_the_threshold(seed: int, gamma: int, width: int) -> None:
    case = random_trees(seed, 16, gamma, width, vocab=4)
    rows = random_rows(seed, 16)
    lengths = [
        accept(case, with_threshold(rows, threshold)).num_accepted for threshold in (1e-30, 0.01, 0.1, 0.3, 0.5, 0.9, 1)
    ]
    for lower, higher in itertools.pairwise(lengths):
        assert bool((higher <= lower).all())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), gamma=st.integers(1, 5), width=st.integers(1, 5))
def test_a_vanishing_threshold_keeps_the_deepest_possible_path(seed: int, gamma: int, width: int) -> None:
    case = random_trees(seed, 16, gamma, width, vocab=4)
    lengths = accept(case, with_threshold(random_rows(seed, 16), 1e-38)).num_accepted
    for row in range(16):
        nodes, _, target = oracle_row(case, row)
        possible = [
            node.depth
            for index, node in enumerate(nodes)
            if node.is_valid and joint_target(nodes, index, target) > -math.inf
        ]
        assert int(lengths[row]) == max(possible, default=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_row_does_not_depend_on_its_batch(seed: int) -> None:
    case = random_trees(seed, 12, 4, 3, vocab=5)
    rows = random_rows(seed, 12)
    together = accept(case, rows)
    for row in range(12):
        alone_case = random_trees(seed, 12, 4, 3, vocab=5)
        only = torch.tensor([row])
        tree = alone_case.tree
        for name in ("tokens", "parents", "depths", "joint_draft_log_probs", "ancestors", "winner", "valid", "carried"):
            setattr(tree, name, getattr(tree, name)[only])
        alone = JointVerifier().accept(tree, alone_case.target_log_probs[only], rows.select(only))
        for name in ("path_nodes", "num_accepted", "next_tokens", "joint_log_ratio"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])


def test_joint_target_log_probs_equal_the_definition() -> None:
    case = random_trees(9, 50, 4, 4, vocab=5)
    joint = joint_target_log_probs(case.tree, case.target_log_probs)
    for row in range(50):
        nodes, _, target = oracle_row(case, row)
        expected = [joint_target(nodes, index, target) for index in range(len(nodes))]
        assert joint[row].tolist() == pytest.approx(expected, abs=1e-12)
