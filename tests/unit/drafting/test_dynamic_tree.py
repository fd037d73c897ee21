"""The dynamic tree drafter against a slow growth written from the definition, and against brute force."""

import heapq
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.oracles import Law, Path, all_paths, sequence_log_probs
from tests.table_models import Run, controls, prefilled, random_table, table_law

from mtad.config import GenerationOptions
from mtad.drafting import DynamicTreeDrafter
from mtad.errors import ConfigError
from mtad.structures import RowSettings, TokenTree, ancestor_bitmask

PROMPTS = [[1], [2, 0, 3], [3, 3], [0, 1, 2, 3, 2]]
SETTINGS = [
    RowSettings(seed=1),
    RowSettings(seed=2, temperature=0.7),
    RowSettings(seed=3, top_k=2),
    RowSettings(seed=4, temperature=1.4, top_p=0.7, top_k=3),
]
COLUMNS = ("tokens", "parents", "depths", "joint_draft_log_probs", "ancestors", "winner", "valid", "carried")


@dataclass
class Grown:
    """A node by its tokens, EOS repeated once it is carried."""

    path: Path
    joint: float
    is_finished: bool = False
    is_carried: bool = False


def draft(
    table: torch.Tensor, gamma: int, width: int, budget: int, eos: list[int], settings: list[RowSettings] | None = None
) -> TokenTree:
    runner, previous, pending = prefilled(table, PROMPTS)
    drafter = DynamicTreeDrafter(runner, gamma, width, budget, torch.tensor(eos, dtype=torch.int64))
    rows = controls(*(settings or SETTINGS), one_hot_at_zero=True).at(runner.lengths.clone())
    return drafter.draft(previous, pending, rows)


def grow(law: Law, gamma: int, width: int, budget: int, eos: list[int]) -> list[Grown]:
    """Valid nodes of the definition, most probable first; parents before children of the same probability."""
    frontier, grown = [Grown((), 0.0)], []
    for _ in range(gamma):
        level = [child for node in frontier for child in _children(node, law, eos)]
        grown += level
        frontier = sorted(level, key=lambda node: -node.joint)[:width]
    kept = sorted(grown, key=lambda node: -node.joint)[:budget]
    deepest = max(len(node.path) for node in kept if not node.is_carried)
    return [node for node in kept if len(node.path) <= deepest]


def _children(node: Grown, law: Law, eos: list[int]) -> list[Grown]:
    if node.is_finished:
        return [Grown((*node.path, node.path[-1]), node.joint, is_finished=True, is_carried=True)]
    log_probs = law(node.path)
    return [
        Grown((*node.path, token), node.joint + float(log_probs[token]), is_finished=token in eos)
        for token in range(len(log_probs))
        if log_probs[token] > -np.inf
    ]


def tree_path(tree: TokenTree, row: int, node: int) -> Path:
    parent = int(tree.parents[row, node])
    return (*(tree_path(tree, row, parent) if parent >= 0 else ()), int(tree.tokens[row, node]))


def kept_nodes(tree: TokenTree, row: int) -> dict[tuple[Path, bool], float]:
    nodes = [node for node in range(tree.num_nodes) if tree.valid[row, node]]
    joint = {
        (tree_path(tree, row, node), bool(tree.carried[row, node])): float(tree.joint_draft_log_probs[row, node])
        for node in nodes
    }
    assert len(joint) == len(nodes)
    return joint


@pytest.mark.parametrize("eos", [[], [1], [0, 2]])
@pytest.mark.parametrize(("gamma", "width", "budget"), [(1, 2, 3), (3, 2, 9), (4, 3, 20), (3, 1, 6), (5, 2, 30)])
def test_equals_the_definition(gamma: int, width: int, budget: int, eos: list[int]) -> None:
    table = random_table(0, 5, 3)
    tree = draft(table, gamma, width, budget, eos)
    for row, (prompt, setting) in enumerate(zip(PROMPTS, SETTINGS, strict=True)):
        expected = grow(table_law(table, prompt, setting), gamma, width, budget, eos)
        assert kept_nodes(tree, row) == pytest.approx({(node.path, node.is_carried): node.joint for node in expected})


def test_a_wide_growth_keeps_the_most_probable_nodes_of_all() -> None:
    table = random_table(1, 4, 2)
    tree = draft(table, 3, 16, 14, [])
    for row, (prompt, setting) in enumerate(zip(PROMPTS, SETTINGS, strict=True)):
        law = table_law(table, prompt, setting)
        joints = {path: sum(sequence_log_probs(law, path)) for length in (1, 2, 3) for path in all_paths(4, length)}
        best = heapq.nlargest(14, (path for path in joints if joints[path] > -np.inf), key=lambda path: joints[path])
        assert {path for path, _ in kept_nodes(tree, row)} == set(best)


@pytest.mark.parametrize("eos", [[], [2]])
def test_nodes_lie_in_level_order_with_their_parents(eos: list[int]) -> None:
    tree = draft(random_table(2, 5, 2), 4, 3, 20, eos)
    assert tree.num_nodes == 20
    assert torch.equal(tree.ancestors, ancestor_bitmask(tree.parents))
    assert (tree.depths.diff(dim=1) >= 0).all()
    for row in range(4):
        for node in range(20):
            parent = int(tree.parents[row, node])
            assert parent < node
            assert int(tree.depths[row, node]) == (int(tree.depths[row, parent]) if parent >= 0 else 0) + 1
            assert parent < 0 or bool(tree.valid[row, parent]) >= bool(tree.valid[row, node])


@pytest.mark.parametrize("eos", [[], [1]])
def test_the_winner_is_the_most_probable_of_the_deepest_level(eos: list[int]) -> None:
    tree = draft(random_table(3, 5, 2), 4, 2, 6, eos)
    reached = set()
    for row in range(4):
        nodes = [node for node in range(6) if tree.valid[row, node]]
        deepest = max(int(tree.depths[row, node]) for node in nodes)
        level = [node for node in nodes if int(tree.depths[row, node]) == deepest]
        assert int(tree.winner[row]) == max(level, key=lambda node: float(tree.joint_draft_log_probs[row, node]))
        reached.add(deepest)
    assert len(reached) > 1


def test_a_finished_node_is_carried_to_the_deepest_level() -> None:
    table = torch.tensor([[0.0, 1.0, -9.0], [0.0, 0.1, -9.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    runner, previous, pending = prefilled(table, [[0]])
    drafter = DynamicTreeDrafter(runner, 4, 2, 6, torch.tensor([1]))
    tree = drafter.draft(previous, pending, controls(RowSettings()))
    paths = dict(kept_nodes(tree, 0).keys())
    assert paths[(1,)] is False
    assert paths[(1, 1)] is True
    assert (0, 1) in paths
    assert (1, 1, 1) not in paths
    assert tree_path(tree, 0, int(tree.winner[0])) == (1, 1)


def test_greedy_rows_are_scored_without_filters() -> None:
    table = random_table(4, 5, 2)
    greedy = [RowSettings(temperature=0, top_k=2, seed=seed) for seed in range(4)]
    plain = [RowSettings(seed=seed) for seed in range(4)]
    for name in COLUMNS:
        assert torch.equal(
            getattr(draft(table, 3, 2, 9, [], greedy), name), getattr(draft(table, 3, 2, 9, [], plain), name)
        )


def test_a_small_vocabulary_grows_fewer_nodes_than_the_budget() -> None:
    runner, previous, pending = prefilled(random_table(5, 2, 1), [[1]])
    drafter = DynamicTreeDrafter(runner, 2, 4, 30, torch.tensor([], dtype=torch.int64))
    tree = drafter.draft(previous, pending, controls(RowSettings()))
    assert drafter.num_nodes == tree.num_nodes == 6
    assert tree.valid.all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    table = random_table(7, 5, 3)
    together = draft(table, 3, 2, 9, [1])
    for row in range(4):
        runner, previous, pending = prefilled(table, PROMPTS[row : row + 1])
        drafter = DynamicTreeDrafter(runner, 3, 2, 9, torch.tensor([1]))
        alone = drafter.draft(previous, pending, controls(SETTINGS[row]).at(runner.lengths.clone()))
        for name in COLUMNS:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("budget", [6, 24])
def test_the_cache_after_keeping_a_path_is_that_of_a_fresh_prefill(budget: int) -> None:
    options = {"method": "mmtad", "drafter": "dynamic_tree", "gamma": 3, "beam_width": 2, "node_budget": budget}
    run = Run(random_table(9, 5, 4), random_table(10, 5, 4), options)
    decoder = run.decoder()
    decoder.prefill(PROMPTS, [RowSettings(seed=seed, threshold=0.05) for seed in range(4)], [40] * 4)
    committed = [list(prompt) for prompt in PROMPTS]
    lengths = set()
    for _ in range(6):
        for sequence, outcome in zip(committed, decoder.step([True] * 4), strict=True):
            assert outcome is not None
            sequence.extend(outcome.tokens)
            lengths.add(outcome.num_drafted)
        for runner in run.runners:
            fresh, previous, pending = prefilled(runner.table, committed)
            assert torch.equal(runner.lengths, fresh.lengths)
            with torch.inference_mode():
                logits = runner.score_root(decoder.previous, decoder.pending)
            assert torch.equal(logits, fresh.score_root(previous, pending))
    assert {1, 2, 3} <= lengths


def test_expanded_nodes_must_fit_the_tree() -> None:
    with pytest.raises(ConfigError, match="gamma \\* beam_width must be <= 64"):
        GenerationOptions(drafter="dynamic_tree", gamma=9, beam_width=8)
