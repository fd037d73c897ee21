"""The joint rule on trees small enough to check by hand."""

import math

import pytest
import torch
from tests.oracles import OracleNode
from tests.random_trees import as_tree
from tests.table_models import controls

from mtad.drafting import chain_tree
from mtad.structures import Acceptance, RowSettings
from mtad.verification import JointVerifier, TargetOnly
from mtad.verification.joint import winner_reference

LOG = math.log


def judge_chain(ratios: list[float], threshold: float, temperature: float = 1.0) -> Acceptance:
    """A chain of token 1 whose joint P / Q at each length is as given."""
    length = len(ratios)
    target = torch.full((1, length + 1, 3), LOG(0.3), dtype=torch.float64)
    target[..., 2] = LOG(0.4)
    joint_target = LOG(0.3) * torch.arange(1, length + 1).double()
    joint_draft = joint_target - torch.tensor(ratios).double().log()
    tree = chain_tree(torch.ones(1, length, dtype=torch.int64), joint_draft.unsqueeze(0))
    rows = controls(RowSettings(threshold=threshold, temperature=temperature))
    return JointVerifier().accept(tree, target, rows)


@pytest.mark.parametrize(
    ("ratios", "threshold", "expected"),
    [
        ([1.0, 1.0, 1.0], 0.5, 3),
        ([0.9, 0.4, 0.1], 0.5, 1),
        ([0.1, 0.4, 0.6], 0.5, 3),
        ([0.1, 0.6, 0.4], 0.5, 2),
        ([0.4, 0.4, 0.4], 0.5, 0),
        ([0.5001, 0.4999], 0.5, 1),
        ([7.0, 0.2], 1.0, 1),
        ([1e-6, 1e-6], 1e-7, 2),
    ],
)
def test_the_longest_prefix_that_passes_is_kept(ratios: list[float], threshold: float, expected: int) -> None:
    acceptance = judge_chain(ratios, threshold)
    assert acceptance.num_accepted.tolist() == [expected]
    assert acceptance.path_nodes.tolist() == [[*range(expected), *[-1] * (len(ratios) - expected)]]
    ratio = LOG(ratios[expected - 1]) if expected else 0.0
    assert acceptance.joint_log_ratio.item() == pytest.approx(ratio)


def test_equal_models_do_not_pass_a_threshold_of_one() -> None:
    target = torch.full((1, 2, 2), LOG(0.5), dtype=torch.float64)
    tree = chain_tree(torch.tensor([[1]]), torch.tensor([[LOG(0.5)]], dtype=torch.float64))
    for threshold, expected in ((1.0, 0), (0.999, 1)):
        accepted = JointVerifier().accept(tree, target, controls(RowSettings(threshold=threshold)))
        assert accepted.num_accepted.tolist() == [expected]


def test_nothing_beyond_an_impossible_token_passes() -> None:
    target = torch.zeros(1, 4, 2, dtype=torch.float64)
    target[0, 1] = torch.tensor([0.0, -math.inf])
    tree = chain_tree(torch.ones(1, 3, dtype=torch.int64), torch.full((1, 3), -50.0, dtype=torch.float64))
    accepted = JointVerifier().accept(tree, target, controls(RowSettings(threshold=1e-30)))
    assert accepted.num_accepted.tolist() == [1]


def test_the_extra_token_of_a_greedy_row_is_the_target_argmax() -> None:
    assert judge_chain([1.0, 1.0], 0.5, temperature=0.0).next_tokens.tolist() == [2]


def node(token: int, parent: int, depth: int, draft_prob: float) -> OracleNode:
    return OracleNode(token, parent, depth, LOG(draft_prob), is_valid=True, is_carried=False)


# Two slots a depth. The winner ends in slot 0 but descends from slot 1.
WANDERING = [node(0, -1, 1, 0.9), node(1, -1, 1, 0.1), node(2, 1, 2, 0.09), node(3, 0, 2, 0.08)]


def test_the_reference_follows_the_winner_through_its_ancestors() -> None:
    tree = as_tree([WANDERING], [2], gamma=2, width=2)
    assert winner_reference(tree).exp().tolist() == [pytest.approx([0.1, 0.1, 0.09, 0.09])]


def test_a_winner_of_a_wandering_slot_lowers_the_bar() -> None:
    # Slot 0 of depth 1 has Q = 0.9, which would refuse both nodes; the winner's own prefix has Q = 0.1.
    tree = as_tree([WANDERING], [2], gamma=2, width=2)
    target = torch.full((1, 5, 4), LOG(0.001), dtype=torch.float64)
    target[0, 0, :2] = torch.tensor([0.2, 0.1]).log()
    accepted = JointVerifier().accept(tree, target, controls(RowSettings(threshold=0.5)))
    assert accepted.path_nodes.tolist() == [[0, -1]]
    assert accepted.joint_log_ratio.item() == pytest.approx(LOG(0.2 / 0.1))


def test_the_deepest_passing_depth_wins_and_then_the_likeliest_node() -> None:
    tree = as_tree([WANDERING], [2], gamma=2, width=2)
    target = torch.full((1, 5, 4), LOG(0.2), dtype=torch.float64)
    target[0, 0, :2] = torch.tensor([0.5, 0.5]).log()
    target[0, 2, 2] = LOG(0.4)
    target[0, 1, 3] = LOG(0.6)
    accepted = JointVerifier().accept(tree, target, controls(RowSettings(threshold=0.5)))
    assert accepted.path_nodes.tolist() == [[0, 3]]
    assert accepted.joint_log_ratio.item() == pytest.approx(LOG(0.3 / 0.09))


def test_a_node_other_than_the_winner_can_pass_where_the_winner_fails() -> None:
    tree = as_tree([WANDERING], [2], gamma=2, width=2)
    target = torch.full((1, 5, 4), -math.inf, dtype=torch.float64)
    target[0, 0, 0] = 0.0
    target[0, 1, 3] = 0.0
    target[0, 4, 1] = 0.0
    accepted = JointVerifier().accept(tree, target, controls(RowSettings(threshold=1.0)))
    assert accepted.path_nodes.tolist() == [[0, 3]]
    assert accepted.next_tokens.tolist() == [1]


def test_carried_nodes_add_nothing() -> None:
    carried = OracleNode(1, 0, 2, LOG(0.4), is_valid=True, is_carried=True)
    tree = as_tree([[node(1, -1, 1, 0.4), carried]], [1], gamma=2, width=1)
    target = torch.full((1, 3, 2), LOG(0.25), dtype=torch.float64)
    accepted = JointVerifier().accept(tree, target, controls(RowSettings(threshold=0.6)))
    assert accepted.num_accepted.tolist() == [2]
    assert accepted.joint_log_ratio.item() == pytest.approx(LOG(0.25 / 0.4))


def test_target_only_keeps_nothing_and_draws_after_the_root() -> None:
    tree = as_tree([WANDERING], [2], gamma=2, width=2)
    target = torch.full((1, 5, 4), 0.0, dtype=torch.float64)
    target[0, 0] = torch.tensor([-math.inf, -math.inf, 0.0, -math.inf])
    accepted = TargetOnly().accept(tree, target, controls(RowSettings()))
    assert accepted.num_accepted.tolist() == [0]
    assert accepted.path_nodes.tolist() == [[-1, -1]]
    assert accepted.next_tokens.tolist() == [2]
    assert accepted.joint_log_ratio.tolist() == [0]
