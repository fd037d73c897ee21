"""Exact match: the target's own tokens whatever was drafted, by enumeration and token for token."""

import numpy as np
import pytest
import torch
from tests.enumeration import (
    Drafts,
    block_law,
    cells,
    completed_law,
    joint_probability,
    kept_paths,
    largest_deviation,
    random_law,
)
from tests.oracles import Array, Law, OracleNode, Path, empirical_distance, invert, largest_distance, path_nodes
from tests.random_trees import as_tree, random_trees
from tests.table_models import Run, controls, random_table, seeded_controls, table_law
from torch import Tensor

from mtad.sampling import Stream, uniform
from mtad.structures import RowControls, RowSettings
from mtad.verification import ExactMatchVerifier


def drafted(seed: int, gamma: int, width: int, vocab: int) -> list[OracleNode]:
    """A random tree in which tokens repeat among siblings and branches die."""
    generator = np.random.default_rng(seed)
    nodes: list[OracleNode] = []
    for depth in range(1, gamma + 1):
        above = [-1] if depth == 1 else list(range((depth - 2) * width, (depth - 1) * width))
        for slot in range(width):
            parent = int(generator.choice(above))
            is_valid = slot == 0 or (generator.random() > 0.1 and (parent < 0 or nodes[parent].is_valid))
            parent = above[0] if slot == 0 else parent
            token = int(generator.integers(vocab))
            nodes.append(OracleNode(token, parent, depth, -1.0 * depth, is_valid=is_valid, is_carried=False))
    return nodes


def tokens_to(nodes: list[OracleNode], node: int) -> Path:
    return tuple(nodes[step].token for step in path_nodes(nodes, node))


def scored(nodes: list[OracleNode], law: Law, gamma: int, width: int) -> Drafts:
    """One tree, scored by a law."""
    target = np.stack([law(()), *(law(tokens_to(nodes, node)) for node in range(len(nodes)))])
    return Drafts(as_tree([nodes], [len(nodes) - width], gamma, width), torch.from_numpy(target)[None], np.ones(1))


class Picks:
    """The random numbers of each place in the text."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __call__(self, rows: RowControls, stream: Stream, length: int) -> Tensor:
        assert stream == Stream.NEXT_TOKEN
        return self.points.gather(1, rows.positions.unsqueeze(1) + torch.arange(length))


@pytest.mark.parametrize(
    ("seed", "vocab", "gamma", "width"),
    [(1, 4, 1, 3), (2, 3, 2, 1), (3, 3, 2, 2), (4, 3, 2, 3), (5, 8, 1, 4), (6, 2, 3, 2)],
)
def test_the_emitted_law_is_the_law_of_the_target(
    seed: int, vocab: int, gamma: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    law, nodes = random_law(seed, vocab, zeros=0.1), drafted(seed, gamma, width, vocab)
    drafts = scored(nodes, law, gamma, width)
    borders: list[list[float]] = [[] for _ in range(gamma + 1)]
    for node in range(-1, len(nodes)):
        place = tokens_to(nodes, node) if node >= 0 else ()
        borders[len(place)] += np.exp(law(place)).cumsum().tolist()
    corners = cells([borders])
    asked = drafts.take(corners.owners)
    monkeypatch.setattr("mtad.verification.exact_match.uniform_along", Picks(corners.points))
    rows = seeded_controls(RowSettings(), torch.zeros(len(corners.owners), dtype=torch.int64))
    acceptance = ExactMatchVerifier().accept(asked.tree, asked.target_log_probs, rows)
    following = np.eye(vocab)[acceptance.next_tokens.numpy()] * corners.volumes[:, None]
    emitted = completed_law(zip(kept_paths(asked.tree, acceptance), following, strict=True), law, vocab, gamma + 1)
    assert largest_deviation(block_law(law, vocab, gamma + 1), emitted) < 1e-8
    reachable = {tokens_to(nodes, node) for node in range(len(nodes)) if is_reachable(nodes, node)}
    expected = sum(joint_probability(law, path) for path in reachable)
    assert float(corners.volumes @ acceptance.num_accepted.numpy()) == pytest.approx(expected, abs=1e-8)


def is_reachable(nodes: list[OracleNode], node: int) -> bool:
    return all(nodes[step].is_valid for step in path_nodes(nodes, node))


def oracle_accept(nodes: list[OracleNode], target: Array, numbers: list[float]) -> tuple[Path, int]:
    """Kept tokens and the next one: walk along the target's own picks while the tree has them."""
    ends: list[int] = [-1]
    kept: Path = ()
    while True:
        picks = {end: invert(target[end + 1], numbers[len(kept)]) for end in ends}
        deeper = [
            index
            for index, node in enumerate(nodes)
            if node.is_valid and node.parent in ends and node.token == picks[node.parent]
        ]
        if not deeper:
            return kept, picks[ends[0]]
        ends, kept = deeper, (*kept, picks[ends[0]])


def test_it_walks_along_the_targets_own_picks() -> None:
    lengths = set()
    for seed in range(80):
        nodes, law = drafted(seed, 3, 4, 3), random_law(seed, 3)
        drafts = scored(nodes, law, 3, 4)
        rows = controls(RowSettings(seed=seed), positions=[seed % 7])
        numbers = [float(uniform(rows.at(rows.positions + depth), Stream.NEXT_TOKEN, 0, 1)) for depth in range(4)]
        acceptance = ExactMatchVerifier().accept(drafts.tree, drafts.target_log_probs, rows)
        kept, following = oracle_accept(nodes, drafts.target_log_probs[0].numpy(), numbers)
        assert kept_paths(drafts.tree, acceptance) == [kept]
        assert acceptance.next_tokens.tolist() == [following]
        lengths.add(len(kept))
    assert lengths == {0, 1, 2, 3}


def test_greedy_rows_keep_the_targets_best_tokens() -> None:
    for seed in range(50):
        nodes, law = drafted(seed, 3, 4, 3), random_law(seed, 3)
        drafts = scored(nodes, law, 3, 4)
        rows = controls(RowSettings(temperature=0))
        acceptance = ExactMatchVerifier().accept(drafts.tree, drafts.target_log_probs, rows)
        (kept,) = kept_paths(drafts.tree, acceptance)
        best: list[int] = []
        for _ in range(4):
            best.append(int(law(tuple(best)).argmax()))
        assert [*kept, *acceptance.next_tokens.tolist()] == best[: len(kept) + 1]
        paths = {tokens_to(nodes, node) for node in range(len(nodes)) if is_reachable(nodes, node)}
        assert tuple(best[: len(kept) + 1]) not in paths


def test_carried_nodes_pass_with_their_beam() -> None:
    case = random_trees(3, 64, 3, 3, 4)
    rows = controls(*[RowSettings(seed=seed) for seed in range(64)])
    acceptance = ExactMatchVerifier().accept(case.tree, case.target_log_probs, rows)
    num_carried = 0
    for row, path in enumerate(acceptance.path_nodes.tolist()):
        end = max([node for node in path if node >= 0], default=-1)
        carried = [index for index, node in enumerate(case.rows[row]) if node.is_carried and node.parent == end]
        assert end < 0 or not carried
        num_carried += sum(case.rows[row][node].is_carried for node in path if node >= 0)
    assert num_carried > 0


@pytest.mark.parametrize("drafter", ["chain", "beam", "beam_tree"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_answers_are_those_of_single_token_decoding(drafter: str, temperature: float) -> None:
    target, draft = random_table(21, 5, order=2), random_table(21, 5, order=2) + 0.3 * random_table(22, 5, order=2)
    prompts = [[1, 2], [3], [4, 0, 2, 1], [2, 2, 2]] * 4
    settings = [
        RowSettings(seed=seed, temperature=temperature * (1 + seed % 2), top_k=seed % 4, top_p=0.9)
        for seed in range(16)
    ]
    lengths = [5 + row for row in range(16)]
    alone = Run(target, draft, {"method": "autoregressive"}, eos=frozenset({4}))
    options = {"method": "mmtad", "drafter": drafter, "verifier": "exact_match", "gamma": 3, "beam_width": 3}
    assisted = Run(target, draft, options, eos=frozenset({4}))
    expected = alone.generate(prompts, settings, lengths)
    actual = assisted.generate(prompts, settings, lengths)
    assert [result.token_ids for result in actual] == [result.token_ids for result in expected]
    assert any(sum(result.accepted_lengths) > 0 for result in actual)


def test_sampled_answers_follow_the_target() -> None:
    # Weissman's bound: a correct rule fails this with probability below 1e-6.
    target, draft = random_table(11, 3, order=2), random_table(12, 3, order=2)
    options = {"method": "mmtad", "verifier": "exact_match", "gamma": 2, "beam_width": 2}
    count = 10_000
    settings = [RowSettings(seed=seed) for seed in range(count)]
    results = Run(target, draft, options).generate([[1, 2]] * count, settings, [3] * count)
    law = block_law(table_law(target, [1, 2], RowSettings()), 3, 3)
    distance = empirical_distance([result.token_ids for result in results], law)
    assert distance < largest_distance(27, count, 1e-6)
