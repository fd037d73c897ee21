"""Tree rejection: its exact law, its expected length, and token rejection as its chain."""

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
)

from mtad.structures import Acceptance, RowSettings, TokenTree
from mtad.verification import TokenRejectionVerifier, TreeRejectionVerifier

CASES = [
    ((2, 2), 3, 0.0),
    ((2, 1), 4, 0.2),
    ((2, 1, 1), 3, 0.0),
    ((3, 2), 2, 0.0),
    ((2, 2, 1), 2, 0.0),
    ((3, 1), 3, 0.3),
    ((2,), 8, 0.2),
]
"""Branching, vocabulary, and share of impossible tokens, which leaves fewer tokens than children."""


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    return Probe(monkeypatch, TreeRejectionVerifier(), "mtad.verification.tree_rejection")


@pytest.mark.parametrize("has_replacement", [True, False])
@pytest.mark.parametrize(("branching", "vocab", "zeros"), CASES)
def test_the_emitted_law_is_the_law_of_the_target(
    branching: tuple[int, ...], vocab: int, zeros: float, has_replacement: bool, probe: Probe
) -> None:
    target, draft = random_law(vocab, vocab, zeros), random_law(vocab + 100, vocab, zeros)
    trees = drafted_trees(target, draft, branching, has_replacement=has_replacement)
    law, length = emitted(probe, trees, branching, rejection_decisions, target)
    assert largest_deviation(block_law(target, vocab, len(branching) + 1), law) < 1e-7
    assert length == pytest.approx(expected_length(trees, rejection_decisions), abs=1e-7)


def test_siblings_without_replacement_keep_more() -> None:
    gains = []
    for seed in range(8):
        target, draft = random_law(seed, 3), random_law(seed + 100, 3)
        lengths = [
            expected_length(drafted_trees(target, draft, (2, 2), has_replacement=replace), rejection_decisions)
            for replace in (True, False)
        ]
        gains.append(lengths[1] - lengths[0])
    assert min(gains) > 0


def judge(tree: TokenTree, target_log_probs: torch.Tensor, settings: RowSettings | None = None) -> Acceptance:
    rows = controls(*[settings or RowSettings(seed=seed) for seed in range(tree.batch_size)], one_hot_at_zero=True)
    return TreeRejectionVerifier().accept(tree, target_log_probs, rows)


def test_a_chain_is_judged_by_token_rejection() -> None:
    target, draft = random_law(1, 4, 0.1), random_law(2, 4, 0.1)
    drafts = chain_drafts(target, draft, 4, 3)
    drafts = drafts.take(list(range(len(drafts.weights))) * 5)
    actual = judge(drafts.tree, drafts.target_log_probs)
    rows = controls(*[RowSettings(seed=seed) for seed in range(len(drafts.weights))])
    expected = TokenRejectionVerifier().accept(drafts.tree, drafts.target_log_probs, rows)
    assert set(expected.num_accepted.tolist()) == {0, 1, 2, 3}
    for name in ("path_nodes", "num_accepted", "next_tokens"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    torch.testing.assert_close(actual.joint_log_ratio, expected.joint_log_ratio, rtol=0, atol=1e-12)


def test_equal_models_accept_a_whole_path() -> None:
    law = random_law(5, 3)
    drafts = as_drafts(drafted_trees(law, law, (2, 2), has_replacement=False), (2, 2))
    accepted = judge(drafts.tree, drafts.target_log_probs)
    assert accepted.path_nodes.tolist() == [[0, 2]] * len(drafts.weights)
    assert accepted.joint_log_ratio.abs().max() < 1e-12


@pytest.mark.parametrize("has_replacement", [True, False])
def test_greedy_rows_follow_the_argmax_through_the_tree(has_replacement: bool) -> None:
    branching = (2, 2)
    target, draft = random_law(6, 4), random_law(7, 4)
    drafts = as_drafts(drafted_trees(target, draft, branching, has_replacement=False), branching)
    drafts.tree.has_replacement = has_replacement
    best = drafts.target_log_probs.argmax(-1)
    one_hot = torch.nn.functional.one_hot(best, 4).double().log()
    accepted = judge(drafts.tree, one_hot, RowSettings(temperature=0))
    assert set(accepted.num_accepted.tolist()) == {0, 1, 2}
    for row in range(len(drafts.weights)):
        node, depth = -1, 0
        matches = [0]
        while matches and depth < 2:
            children = [i for i in range(6) if int(drafts.tree.parents[row, i]) == node]
            matches = [i for i in children if int(drafts.tree.tokens[row, i]) == int(best[row, node + 1])]
            if matches:
                node, depth = matches[0], depth + 1
        assert int(accepted.num_accepted[row]) == depth
        assert int(accepted.next_tokens[row]) == int(best[row, node + 1])


def test_a_row_does_not_depend_on_its_batch() -> None:
    branching = (2, 2)
    target, draft = random_law(8, 3), random_law(9, 3)
    drafts = as_drafts(drafted_trees(target, draft, branching, has_replacement=True), branching)
    together = judge(drafts.tree, drafts.target_log_probs)
    for row in range(0, len(drafts.weights), 50):
        alone = drafts.take([row])
        rows = controls(RowSettings(seed=row))
        accepted = TreeRejectionVerifier().accept(alone.tree, alone.target_log_probs, rows)
        for name in ("path_nodes", "num_accepted", "next_tokens", "joint_log_ratio"):
            assert torch.equal(getattr(accepted, name)[0], getattr(together, name)[row]), name


def test_sampled_answers_follow_the_target() -> None:
    # Weissman's bound: a correct rule fails this with probability below 1e-7.
    target, draft = random_table(11, 3, order=2), random_table(12, 3, order=2)
    options = {
        "method": "speculative",
        "drafter": "branching_tree",
        "verifier": "tree_rejection",
        "branching": "2,2",
        "siblings": "with_replacement",
    }
    count = 10_000
    run = Run(target, draft, options)
    results = run.generate([[1, 2]] * count, [RowSettings(seed=seed) for seed in range(count)], [3] * count)
    law = block_law(table_law(target, [1, 2], RowSettings()), 3, 3)
    distance = empirical_distance([result.token_ids for result in results], law)
    assert distance < largest_distance(27, count, 1e-7)
