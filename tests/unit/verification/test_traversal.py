"""Traversal verification: its exact law, its expected length beside the other lossless rules."""

import pytest
import torch
from tests.enumeration import Probe, block_law, chain_drafts, largest_deviation, random_law
from tests.oracles import empirical_distance, largest_distance
from tests.table_models import Run, controls, random_table, table_law
from tests.tree_enumeration import (
    as_drafts,
    drafted_trees,
    emitted,
    expected_length,
    rejection_decisions,
    traversal_decisions,
)
from tests.unit.verification.test_tree_rejection import CASES

from mtad.structures import Acceptance, RowSettings, TokenTree
from mtad.verification import BlockVerifier, TraversalVerifier


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    return Probe(monkeypatch, TraversalVerifier(), "mtad.verification.traversal")


@pytest.mark.parametrize("has_replacement", [True, False])
@pytest.mark.parametrize(("branching", "vocab", "zeros"), [*CASES, ((1, 1, 1), 5, 0.2)])
def test_the_emitted_law_is_the_law_of_the_target(
    branching: tuple[int, ...], vocab: int, zeros: float, has_replacement: bool, probe: Probe
) -> None:
    target, draft = random_law(vocab, vocab, zeros), random_law(vocab + 100, vocab, zeros)
    trees = drafted_trees(target, draft, branching, has_replacement=has_replacement)
    law, length = emitted(probe, trees, branching, traversal_decisions, target)
    assert largest_deviation(block_law(target, vocab, len(branching) + 1), law) < 1e-7
    assert length == pytest.approx(expected_length(trees, traversal_decisions), abs=1e-7)


@pytest.mark.parametrize("has_replacement", [True, False])
@pytest.mark.parametrize("branching", [(2, 2), (2, 1), (1, 2), (2, 1, 1)])
def test_it_keeps_at_least_what_tree_rejection_keeps(branching: tuple[int, ...], has_replacement: bool) -> None:
    gains = []
    for seed in range(5):
        target, draft = random_law(seed, 3), random_law(seed + 100, 3)
        trees = drafted_trees(target, draft, branching, has_replacement=has_replacement)
        gains.append(expected_length(trees, traversal_decisions) - expected_length(trees, rejection_decisions))
    assert min(gains) > -1e-12
    assert max(gains) > 0.02


def judge(tree: TokenTree, target_log_probs: torch.Tensor) -> Acceptance:
    rows = controls(*[RowSettings(seed=seed) for seed in range(tree.batch_size)])
    return TraversalVerifier().accept(tree, target_log_probs, rows)


def test_a_chain_is_judged_by_block_verification() -> None:
    target, draft = random_law(1, 4, 0.1), random_law(2, 4, 0.1)
    drafts = chain_drafts(target, draft, 4, 3)
    drafts = drafts.take(list(range(len(drafts.weights))) * 5)
    actual = judge(drafts.tree, drafts.target_log_probs)
    rows = controls(*[RowSettings(seed=seed) for seed in range(len(drafts.weights))])
    expected = BlockVerifier().accept(drafts.tree, drafts.target_log_probs, rows)
    assert set(expected.num_accepted.tolist()) == {0, 1, 2, 3}
    for name in ("path_nodes", "num_accepted", "next_tokens"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


def test_equal_models_accept_the_first_leaf() -> None:
    law = random_law(5, 3)
    drafts = as_drafts(drafted_trees(law, law, (2, 2), has_replacement=True), (2, 2))
    accepted = judge(drafts.tree, drafts.target_log_probs)
    assert accepted.path_nodes.tolist() == [[0, 2]] * len(drafts.weights)


@pytest.mark.parametrize("has_replacement", [True, False])
def test_one_hot_targets_are_followed_as_far_as_the_tree_goes(has_replacement: bool) -> None:
    branching = (2, 2)
    target, draft = random_law(6, 4), random_law(7, 4)
    drafts = as_drafts(drafted_trees(target, draft, branching, has_replacement=False), branching)
    drafts.tree.has_replacement = has_replacement
    best = drafts.target_log_probs.argmax(-1)
    one_hot = torch.nn.functional.one_hot(best, 4).double().log()
    rows = controls(*[RowSettings(temperature=0)] * len(drafts.weights), one_hot_at_zero=True)
    accepted = TraversalVerifier().accept(drafts.tree, one_hot, rows)
    on_path = drafts.tree.tokens == best.gather(1, drafts.tree.parents + 1)
    depth_two = on_path[:, 2:] & on_path[:, :2].repeat_interleave(2, 1)
    expected = torch.where(depth_two.any(1), 2, on_path[:, :2].any(1).long())
    assert accepted.num_accepted.tolist() == expected.tolist()
    end = accepted.path_nodes.amax(1) + 1
    assert accepted.next_tokens.tolist() == best.gather(1, end.unsqueeze(1)).squeeze(1).tolist()


def test_a_row_does_not_depend_on_its_batch() -> None:
    branching = (2, 2)
    target, draft = random_law(8, 3), random_law(9, 3)
    drafts = as_drafts(drafted_trees(target, draft, branching, has_replacement=True), branching)
    together = judge(drafts.tree, drafts.target_log_probs)
    for row in range(0, len(drafts.weights), 50):
        alone = drafts.take([row])
        accepted = TraversalVerifier().accept(alone.tree, alone.target_log_probs, controls(RowSettings(seed=row)))
        for name in ("path_nodes", "num_accepted", "next_tokens", "joint_log_ratio"):
            assert torch.equal(getattr(accepted, name)[0], getattr(together, name)[row]), name


def test_sampled_answers_follow_the_target() -> None:
    # Weissman's bound: a correct rule fails this with probability below 1e-7.
    target, draft = random_table(11, 3, order=2), random_table(12, 3, order=2)
    options = {
        "method": "speculative",
        "drafter": "branching_tree",
        "verifier": "traversal",
        "branching": "2,2",
        "siblings": "without_replacement",
    }
    count = 10_000
    run = Run(target, draft, options)
    results = run.generate([[1, 2]] * count, [RowSettings(seed=seed) for seed in range(count)], [3] * count)
    law = block_law(table_law(target, [1, 2], RowSettings()), 3, 3)
    distance = empirical_distance([result.token_ids for result in results], law)
    assert distance < largest_distance(27, count, 1e-7)
