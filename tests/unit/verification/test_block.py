"""Block verification: its exact law, its expected length, and the paper's own example."""

import numpy as np
import pytest
import torch
from tests.enumeration import (
    Cells,
    Drafts,
    Probe,
    block_law,
    cells,
    chain_drafts,
    completed_law,
    joint_probability,
    kept_paths,
    largest_deviation,
    random_law,
)
from tests.oracles import Array, Law, Path, all_paths, empirical_distance, largest_distance
from tests.table_models import Run, controls, random_table, table_law

from mtad.drafting import chain_tree
from mtad.structures import Acceptance, RowSettings
from mtad.verification import BlockVerifier, TokenRejectionVerifier

CASES = [(2, 1, 0.0), (8, 1, 0.4), (3, 2, 0.0), (8, 2, 0.3), (3, 3, 0.0), (5, 3, 0.3), (8, 3, 0.1)]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    return Probe(monkeypatch, BlockVerifier(), "mtad.verification.block")


def prefix_weights(target: Law, draft: Law, path: Path) -> list[float]:
    """w_0, w_1, ... of a drafted path, as the paper's recursion says it."""
    weights = [1.0]
    for end, token in enumerate(path):
        ratio = float(np.exp(target(path[:end])[token] - draft(path[:end])[token]))
        weights.append(min(1.0, weights[-1] * ratio))
    return weights


def odds(target: Law, draft: Law, path: Path) -> list[float]:
    """Chance that each prefix passes by itself, for prefixes of 1, 2, ... tokens."""
    weights = prefix_weights(target, draft, path)
    result = []
    for end in range(1, len(path)):
        mass = np.maximum(weights[end] * np.exp(target(path[:end])) - np.exp(draft(path[:end])), 0).sum()
        result.append(float(mass / (mass + 1 - weights[end])) if mass + 1 > weights[end] else 1.0)
    return [*result, weights[-1]]


def block_cells(target: Law, draft: Law, paths: list[Path]) -> Cells:
    return cells([[[border] for border in odds(target, draft, path)] for path in paths])


def emitted(probe: Probe, target: Law, draft: Law, vocab: int, gamma: int) -> tuple[dict[Path, float], float]:
    """Law of gamma + 1 tokens, and the expected number of kept tokens, of the rule itself."""
    drafts = chain_drafts(target, draft, vocab, gamma)
    corners = block_cells(target, draft, [tuple(path) for path in drafts.tree.tokens.tolist()])
    asked = drafts.take(corners.owners)
    acceptance, following = probe.ask(asked, {0: corners.points})
    weights = asked.weights * corners.volumes
    outcomes = zip(kept_paths(asked.tree, acceptance), weights[:, None] * following, strict=True)
    length = float((weights * acceptance.num_accepted.numpy()).sum())
    return completed_law(outcomes, target, vocab, gamma + 1), length


def token_odds(target: Law, draft: Law, path: Path) -> list[float]:
    """Chance that token rejection accepts each token once those before it are."""
    laws = [(target(path[:end])[token], draft(path[:end])[token]) for end, token in enumerate(path)]
    return [min(1.0, float(np.exp(log_p - log_q))) for log_p, log_q in laws]


def expected_lengths(target: Law, draft: Law, vocab: int, gamma: int) -> tuple[float, float]:
    """Kept tokens on average with block verification and with token rejection, by the papers' formulas."""
    block = token = 0.0
    for length in range(1, gamma + 1):
        for path in all_paths(vocab, length):
            weight = joint_probability(draft, path)
            if weight > 0:
                block += weight * prefix_weights(target, draft, path)[-1]
                token += weight * float(np.prod(token_odds(target, draft, path)))
    return block, token


@pytest.mark.parametrize(("vocab", "gamma", "zeros"), CASES)
def test_the_emitted_law_is_the_law_of_the_target(vocab: int, gamma: int, zeros: float, probe: Probe) -> None:
    target, draft = random_law(vocab, vocab, zeros), random_law(vocab + 100, vocab, zeros)
    law, length = emitted(probe, target, draft, vocab, gamma)
    assert largest_deviation(block_law(target, vocab, gamma + 1), law) < 1e-8
    assert length == pytest.approx(expected_lengths(target, draft, vocab, gamma)[0], abs=1e-8)


def test_it_keeps_at_least_what_token_rejection_keeps(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = []
    for seed in range(12):
        target, draft = random_law(seed, 3), random_law(seed + 100, 3)
        block, token = expected_lengths(target, draft, 3, 3)
        assert emitted(probe, target, draft, 3, 3)[1] == pytest.approx(block, abs=1e-8)
        assert token_rejection_length(monkeypatch, target, draft) == pytest.approx(token, abs=1e-8)
        gains.append(block - token)
    assert min(gains) > -1e-12
    assert sum(gain > 0.01 for gain in gains) >= 6


def token_rejection_length(monkeypatch: pytest.MonkeyPatch, target: Law, draft: Law) -> float:
    """Expected number of kept tokens of the token rejection rule itself, vocabulary 3, gamma 3."""
    drafts = chain_drafts(target, draft, 3, 3)
    paths = [tuple(path) for path in drafts.tree.tokens.tolist()]
    corners = cells([[[border] for border in token_odds(target, draft, path)] for path in paths])
    asked = drafts.take(corners.owners)
    probe = Probe(monkeypatch, TokenRejectionVerifier(), "mtad.verification.token_rejection")
    acceptance, _ = probe.ask(asked, {0: corners.points})
    return float((asked.weights * corners.volumes * acceptance.num_accepted.numpy()).sum())


def test_the_papers_example_keeps_eleven_ninths(probe: Probe) -> None:
    # Sun et al. 2025, section 2: target (1/3, 2/3), draft (2/3, 1/3), two tokens: 11/9, with token rejection 10/9.
    def constant(probs: list[float]) -> Law:
        log_probs: Array = np.log(probs)
        return lambda path: log_probs

    target, draft = constant([1 / 3, 2 / 3]), constant([2 / 3, 1 / 3])
    assert expected_lengths(target, draft, 2, 2) == pytest.approx((11 / 9, 10 / 9))
    law, length = emitted(probe, target, draft, 2, 2)
    assert length == pytest.approx(11 / 9, abs=1e-8)
    assert largest_deviation(block_law(target, 2, 3), law) < 1e-8


def test_a_draft_that_ends_early_is_a_shorter_draft(probe: Probe) -> None:
    target, draft = random_law(1, 3), random_law(2, 3)
    long, short = chain_drafts(target, draft, 3, 3), chain_drafts(target, draft, 3, 2)
    long.tree.valid[:, 2] = False
    corners = block_cells(target, draft, [tuple(path) for path in short.tree.tokens.tolist()])
    unused = torch.full((len(corners.owners), 1), 1e-12, dtype=torch.float64)
    expected, expected_law = probe.ask(short.take(corners.owners), {0: corners.points})
    owners = [3 * owner for owner in corners.owners]
    actual, law = probe.ask(long.take(owners), {0: torch.cat([corners.points, unused], 1)})
    assert actual.num_accepted.tolist() == expected.num_accepted.tolist()
    np.testing.assert_allclose(law, expected_law, rtol=0, atol=1e-12)


def test_equal_models_accept_everything() -> None:
    law = random_law(5, 4)
    drafts = chain_drafts(law, law, 4, 3)
    accepted = accept(drafts)
    assert accepted.num_accepted.tolist() == [3] * 64
    assert accepted.path_nodes.tolist() == [[0, 1, 2]] * 64
    assert accepted.joint_log_ratio.abs().max() < 1e-12


def accept(drafts: Drafts) -> Acceptance:
    settings = [RowSettings(seed=seed) for seed in range(len(drafts.weights))]
    return BlockVerifier().accept(drafts.tree, drafts.target_log_probs, controls(*settings))


def test_the_joint_ratio_is_that_of_the_kept_path() -> None:
    target, draft = random_law(6, 4), random_law(7, 4)
    drafts = chain_drafts(target, draft, 4, 3)
    accepted = accept(drafts)
    lengths = accepted.num_accepted.tolist()
    assert set(lengths) == {0, 1, 2, 3}
    for row, length in enumerate(lengths):
        path = tuple(drafts.tree.tokens[row, :length].tolist())
        expected = np.log(joint_probability(target, path) / joint_probability(draft, path))
        assert float(accepted.joint_log_ratio[row]) == pytest.approx(expected, abs=1e-12)
        assert accepted.path_nodes[row].tolist() == [*range(length), *[-1] * (3 - length)]


def test_one_hot_models_keep_what_agrees_and_correct_the_rest() -> None:
    def one_hot(tokens: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(tokens), 4).double().log()

    tree = chain_tree(torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, dtype=torch.float64), one_hot([1, 2, 3])[None])
    rows = controls(RowSettings(temperature=0), one_hot_at_zero=True)
    for target, kept, following in (([1, 2, 3, 0], 3, 0), ([1, 0, 3, 1], 1, 0), ([2, 2, 3, 1], 0, 2)):
        accepted = BlockVerifier().accept(tree, one_hot(target)[None], rows)
        assert accepted.num_accepted.tolist() == [kept]
        assert accepted.next_tokens.tolist() == [following]


def test_a_prefix_that_fails_may_lie_inside_one_that_passes(probe: Probe) -> None:
    target, draft = random_law(8, 3), random_law(9, 3)
    drafts = chain_drafts(target, draft, 3, 2)
    numbers = torch.tensor([[1 - 1e-12, 1e-12]], dtype=torch.float64).expand(9, 2)
    acceptance, _ = probe.ask(drafts, {0: numbers})
    assert acceptance.num_accepted.tolist() == [2] * 9


def test_sampled_answers_follow_the_target() -> None:
    # Weissman's bound: a correct rule fails this with probability below 1e-6.
    target, draft = random_table(11, 3, order=2), random_table(12, 3, order=2)
    run = Run(target, draft, {"method": "speculative", "verifier": "block", "gamma": 3})
    count = 10_000
    results = run.generate([[1, 2]] * count, [RowSettings(seed=seed) for seed in range(count)], [3] * count)
    law = block_law(table_law(target, [1, 2], RowSettings()), 3, 3)
    distance = empirical_distance([result.token_ids for result in results], law)
    assert distance < largest_distance(27, count, 1e-6)
