"""The joint rule against other references: each node's own path, and what the target itself would draw."""

import math
from collections.abc import Callable

import pytest
import torch
from tests.oracles import Array, OracleNode, joint_target, path_nodes
from tests.random_trees import TreeCase, oracle_row, random_trees
from tests.table_models import controls

from mtad.drafting import chain_tree
from mtad.structures import Acceptance, RowControls, RowSettings
from mtad.verification import JointExpectedVerifier, JointOwnPathVerifier, JointVerifier, Verifier
from mtad.verification.joint_expected import expected_log_probs

BATCH, GAMMA, WIDTH, VOCAB = 40, 4, 3, 5
THRESHOLDS = (0.05, 0.3, 0.9)

Reference = Callable[[list[OracleNode], int, Array], float]


def own_path(nodes: list[OracleNode], node: int, target: Array) -> float:
    return nodes[node].joint_draft


def expected(nodes: list[OracleNode], node: int, target: Array) -> float:
    """Expected log-likelihood of the target's own tokens at the places of a path."""
    total = 0.0
    for step in path_nodes(nodes, node):
        if not nodes[step].is_carried:
            log_probs = target[nodes[step].parent + 1]
            total += sum(math.exp(value) * value for value in log_probs if value > -math.inf)
    return total


VARIANTS: list[tuple[Verifier, Reference]] = [(JointOwnPathVerifier(), own_path), (JointExpectedVerifier(), expected)]


def rows_for(seed: int) -> RowControls:
    return controls(*[RowSettings(seed=seed + row, threshold=THRESHOLDS[row % 3]) for row in range(BATCH)])


def judge(rule: Verifier, case: TreeCase, seed: int) -> Acceptance:
    return rule.accept(case.tree, case.target_log_probs, rows_for(seed))


def best_node(nodes: list[OracleNode], target: Array, reference: Reference, log_threshold: float) -> tuple[int, float]:
    """The deepest node that passes, the likeliest of its depth, and by how much it passes."""
    best, best_key, best_ratio = -1, (0, -math.inf), 0.0
    for index, node in enumerate(nodes):
        joint = joint_target(nodes, index, target)
        if not node.is_valid or joint == -math.inf:
            continue
        ratio = joint - reference(nodes, index, target)
        if ratio > log_threshold and (node.depth, joint) > best_key:
            best, best_key, best_ratio = index, (node.depth, joint), ratio
    return best, best_ratio


@pytest.mark.parametrize(("rule", "reference"), VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition(rule: Verifier, reference: Reference, seed: int) -> None:
    case = random_trees(seed, BATCH, GAMMA, WIDTH, vocab=VOCAB)
    acceptance = judge(rule, case, seed)
    for row in range(BATCH):
        nodes, _, target = oracle_row(case, row)
        node, ratio = best_node(nodes, target, reference, math.log(THRESHOLDS[row % 3]))
        path = path_nodes(nodes, node)
        assert int(acceptance.num_accepted[row]) == len(path)
        kept = acceptance.path_nodes[row, : len(path)].tolist()
        assert [(nodes[i].token, nodes[i].joint_draft) for i in kept] == [
            (nodes[i].token, nodes[i].joint_draft) for i in path
        ]
        assert float(acceptance.joint_log_ratio[row]) == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize(("rule", "reference"), VARIANTS)
def test_every_kept_path_keeps_the_guarantee(rule: Verifier, reference: Reference) -> None:
    kept = 0
    for seed in range(10, 16):
        case = random_trees(seed, BATCH, GAMMA, WIDTH, vocab=VOCAB)
        acceptance = judge(rule, case, seed)
        for row, count in enumerate(acceptance.num_accepted.tolist()):
            if count:
                nodes, _, target = oracle_row(case, row)
                node = int(acceptance.path_nodes[row, count - 1])
                likelihood = math.exp(joint_target(nodes, node, target))
                assert likelihood > THRESHOLDS[row % 3] * math.exp(reference(nodes, node, target)) * (1 - 1e-6)
                kept += 1
    assert kept > BATCH


def test_on_a_chain_the_own_path_is_the_winners() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(BATCH, GAMMA + 1, VOCAB, generator=generator, dtype=torch.float64).log_softmax(-1)
    tokens = torch.randint(VOCAB, (BATCH, GAMMA), generator=generator)
    joint = -torch.rand(BATCH, GAMMA, generator=generator, dtype=torch.float64).cumsum(1) * 2
    case = TreeCase(chain_tree(tokens, joint), target, [])
    own, winners = judge(JointOwnPathVerifier(), case, 0), judge(JointVerifier(), case, 0)
    assert set(own.num_accepted.tolist()) > {0, 1}
    for name in ("path_nodes", "num_accepted", "next_tokens", "joint_log_ratio"):
        assert torch.equal(getattr(own, name), getattr(winners, name)), name


def test_the_draft_does_not_move_the_expected_rule() -> None:
    case = random_trees(2, BATCH, GAMMA, WIDTH, vocab=VOCAB)
    before = judge(JointExpectedVerifier(), case, 2)
    case.tree.joint_draft_log_probs = case.tree.joint_draft_log_probs * 3 - 1
    after = judge(JointExpectedVerifier(), case, 2)
    assert torch.equal(before.path_nodes, after.path_nodes)
    assert torch.equal(before.joint_log_ratio, after.joint_log_ratio)


def test_a_certain_target_expects_its_own_token() -> None:
    target = torch.full((1, 3, 4), -math.inf)
    target[..., 1] = 0.0
    tree = chain_tree(torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]]))
    assert expected_log_probs(tree, target).tolist() == [[0.0, 0.0]]
    accepted = JointExpectedVerifier().accept(tree, target, controls(RowSettings(threshold=0.01)))
    assert accepted.num_accepted.tolist() == [1]


def test_an_average_path_passes_a_threshold_below_one() -> None:
    target = torch.full((1, 4, 4), math.log(0.25), dtype=torch.float64)
    tree = chain_tree(torch.tensor([[0, 1, 2]]), torch.zeros(1, 3, dtype=torch.float64))
    for threshold, kept in ((0.99, 3), (1.0, 0)):
        accepted = JointExpectedVerifier().accept(tree, target, controls(RowSettings(threshold=threshold)))
        assert accepted.num_accepted.tolist() == [kept]


@pytest.mark.parametrize(("rule", "reference"), VARIANTS)
def test_a_row_does_not_depend_on_its_batch(rule: Verifier, reference: Reference) -> None:
    together = judge(rule, random_trees(5, BATCH, GAMMA, WIDTH, vocab=VOCAB), 5)
    for row in range(0, BATCH, 7):
        case, only = random_trees(5, BATCH, GAMMA, WIDTH, vocab=VOCAB), torch.tensor([row])
        tree = case.tree
        for name in ("tokens", "parents", "depths", "joint_draft_log_probs", "ancestors", "winner", "valid", "carried"):
            setattr(tree, name, getattr(tree, name)[only])
        alone = rule.accept(tree, case.target_log_probs[only], rows_for(5).select(only))
        for name in ("path_nodes", "num_accepted", "next_tokens", "joint_log_ratio"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name
