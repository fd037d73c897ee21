"""Target thresholds against a slow version, the stated bound, and the law at 1."""

import math

import numpy as np
import pytest
import torch
from tests.enumeration import (
    Drafts,
    Probe,
    block_law,
    cells,
    completed_law,
    kept_paths,
    largest_deviation,
    random_law,
)
from tests.oracles import Array, OracleNode, path_nodes
from tests.random_trees import TreeCase, as_tree, oracle_row, random_trees
from tests.table_models import Run, controls, random_table

from mtad.sampling import Stream, uniform
from mtad.structures import RowSettings
from mtad.verification import ThresholdVerifier

MODULE = "mtad.verification.threshold"
SHAPES = [(1, 1, 6), (3, 1, 5), (2, 4, 6), (3, 3, 5)]


def tried_children(nodes: list[OracleNode], node: int) -> list[int]:
    """Drafted children in order, without repeats of a token."""
    children: dict[int, int] = {}
    for index, child in enumerate(nodes):
        if child.parent == node and child.is_valid:
            children.setdefault(child.token, index)
    return list(children.values())


def threshold_rule(
    nodes: list[OracleNode], target: Array, numbers: list[float], single: float, accumulated: float
) -> int:
    """The node where the walk from the root ends."""
    node, depth = -1, 0
    while True:
        total = 0.0
        for child in tried_children(nodes, node):
            prob = 1.0 if nodes[child].is_carried else math.exp(target[node + 1, nodes[child].token])
            total += prob
            if numbers[depth] <= total / accumulated or prob >= single:
                node, depth = child, depth + 1
                break
        else:
            return node


def remaining_law(nodes: list[OracleNode], node: int, target: Array) -> Array:
    """The target after a node without the tokens that were tried there."""
    probs: Array = np.exp(target[node + 1])
    probs[[nodes[child].token for child in tried_children(nodes, node)]] = 0
    law: Array = probs / probs.sum() if probs.sum() > 0 else np.exp(target[node + 1])
    return law


def as_drafts(case: TreeCase) -> Drafts:
    return Drafts(case.tree, case.target_log_probs, np.ones(len(case.rows)))


@pytest.mark.parametrize(("gamma", "width", "vocab"), SHAPES)
@pytest.mark.parametrize(("single", "accumulated"), [(1.0, 1.0), (0.4, 1.0), (1.0, 0.5), (0.3, 0.3)])
def test_it_ends_where_the_slow_version_ends(
    gamma: int, width: int, vocab: int, single: float, accumulated: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_trees(gamma + width, 80, gamma, width, vocab)
    numbers = torch.from_numpy(np.random.default_rng(gamma).random((80, gamma)))
    probe = Probe(monkeypatch, ThresholdVerifier(single, accumulated), MODULE)
    acceptance, laws = probe.ask(as_drafts(case), {0: numbers})
    for row, path in enumerate(acceptance.path_nodes.tolist()):
        nodes, _, target = oracle_row(case, row)
        node = threshold_rule(nodes, target, numbers[row].tolist(), single, accumulated)
        assert max(path) == node
        np.testing.assert_allclose(laws[row], remaining_law(nodes, node, target), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("gamma", "width", "vocab"), [(1, 4, 6), (3, 1, 4), (2, 2, 3), (2, 3, 4)])
def test_at_one_the_emitted_law_is_the_law_of_the_target(
    gamma: int, width: int, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, law = np.random.default_rng(gamma), random_law(width, vocab)
    nodes: list[OracleNode] = []
    for depth in range(1, gamma + 1):
        above = [-1] if depth == 1 else list(range((depth - 2) * width, (depth - 1) * width))
        for _ in range(width):
            parent, token = int(generator.choice(above)), int(generator.integers(vocab))
            nodes.append(OracleNode(token, parent, depth, -1.0, is_valid=True, is_carried=False))
    places = [(), *(tuple(nodes[step].token for step in path_nodes(nodes, node)) for node in range(len(nodes)))]
    target = torch.from_numpy(np.stack([law(place) for place in places]))[None]
    tree = as_tree([nodes], [len(nodes) - 1], gamma, width)
    borders: list[list[float]] = [[] for _ in range(gamma)]
    for node in range(-1, len(nodes)):
        if len(places[node + 1]) < gamma:
            tried = [nodes[child].token for child in tried_children(nodes, node)]
            borders[len(places[node + 1])] += np.exp(law(places[node + 1]))[tried].cumsum().tolist()
    corners = cells([borders])
    asked = Drafts(tree, target, np.ones(1)).take(corners.owners)
    acceptance, following = Probe(monkeypatch, ThresholdVerifier(1.0, 1.0), MODULE).ask(asked, {0: corners.points})
    outcomes = zip(kept_paths(asked.tree, acceptance), corners.volumes[:, None] * following, strict=True)
    emitted = completed_law(outcomes, law, vocab, gamma + 1)
    assert largest_deviation(block_law(law, vocab, gamma + 1), emitted) < 1e-8


@pytest.mark.parametrize(("single", "accumulated"), [(1.0, 0.5), (0.3, 1.0), (0.4, 0.6)])
def test_the_next_token_is_bounded_by_its_target_probability(
    single: float, accumulated: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_trees(7, 60, 1, 4, 6)
    case.tree.carried[:] = False
    case.target_log_probs = case.target_log_probs.log_softmax(-1)
    probe = Probe(monkeypatch, ThresholdVerifier(single, accumulated), MODULE)
    for row in range(60):
        nodes, _, target = oracle_row(case, row)
        probs = np.exp(target[0])
        tried = [nodes[child].token for child in tried_children(nodes, -1)]
        corners = cells([[(probs[tried].cumsum() / accumulated).tolist()]])
        asked = as_drafts(case).take([row] * len(corners.owners))
        acceptance, following = probe.ask(asked, {0: corners.points})
        law = np.zeros(6)
        for path, volume, rest in zip(kept_paths(asked.tree, acceptance), corners.volumes, following, strict=True):
            law += volume * (np.eye(6)[path[0]] if path else rest)
        assert law.sum() == pytest.approx(1)
        is_certain = np.isin(np.arange(6), tried) & (probs >= single)
        assert ((law <= probs / accumulated + 1e-8) | is_certain).all()


def test_greedy_rows_keep_the_targets_best_tokens() -> None:
    case = random_trees(8, 100, 3, 3, 5)
    rows = controls(*[RowSettings(seed=row, temperature=0) for row in range(100)])
    acceptance = ThresholdVerifier(0.05, 0.1).accept(case.tree, case.target_log_probs, rows)
    for row, path in enumerate(acceptance.path_nodes.tolist()):
        nodes, _, target = oracle_row(case, row)
        end = max(path)
        for step in path_nodes(nodes, end):
            assert nodes[step].is_carried or nodes[step].token == target[nodes[step].parent + 1].argmax()
        assert int(acceptance.next_tokens[row]) == target[end + 1].argmax() or any(
            nodes[child].is_carried for child in tried_children(nodes, end)
        )


def test_the_numbers_are_the_rows_own() -> None:
    case = random_trees(9, 40, 3, 3, 5)
    rows = controls(*[RowSettings(seed=row) for row in range(40)], positions=list(range(40)))
    acceptance = ThresholdVerifier(1.0, 0.7).accept(case.tree, case.target_log_probs, rows)
    numbers = uniform(rows, Stream.ACCEPT, 0, 3)
    for row, path in enumerate(acceptance.path_nodes.tolist()):
        nodes, _, target = oracle_row(case, row)
        assert max(path) == threshold_rule(nodes, target, numbers[row].tolist(), 1.0, 0.7)


def test_lower_thresholds_keep_more() -> None:
    target, draft = random_table(3, 6), random_table(4, 6)
    per_call = []
    for single, accumulated in ((1.0, 1.0), (0.3, 1.0), (0.3, 0.3), (0.05, 0.05)):
        options = {"method": "mmtad", "verifier": "threshold", "gamma": 3, "beam_width": 2}
        run = Run(target, draft, {**options, "accept_single": single, "accept_accumulated": accumulated})
        results = run.generate([[1]] * 50, [RowSettings(seed=seed) for seed in range(50)], [30] * 50)
        per_call.append(sum(result.stats.tokens_per_call for result in results) / 50)
    assert per_call == sorted(per_call)
    assert per_call[-1] > per_call[0] + 0.3
