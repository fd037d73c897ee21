"""The beam drafter against a slow beam search written from the definitions."""

import itertools

import numpy as np
import pytest
import torch
from tests.oracles import (
    Array,
    Beam,
    Pick,
    beam_levels,
    empirical_distance,
    enumerate_blocks,
    invert,
    invert_without_replacement,
    largest_distance,
    plackett_luce,
)
from tests.table_models import controls, prefilled, random_table, seeded_controls, table_law

from mtad.drafting import BeamDrafter, BeamSampler
from mtad.drafting.beams import Draw
from mtad.sampling import Stream, uniform
from mtad.structures import RowSettings, TokenTree, ancestor_bitmask, path_to

PROMPTS = [[1], [2, 0, 3], [3, 3], [0, 1, 2, 3, 2]]
SETTINGS = [
    RowSettings(seed=1),
    RowSettings(seed=2, temperature=0.7),
    RowSettings(seed=3, top_k=2),
    RowSettings(seed=4, temperature=1.4, top_p=0.7, top_k=3),
]


def draft(
    table: torch.Tensor, gamma: int, width: int, draw: Draw, eos: list[int], *, keep_tree: bool = True
) -> TokenTree:
    runner, previous, pending = prefilled(table, PROMPTS)
    sampler = BeamSampler(width=width, draw=draw, eos_token_ids=torch.tensor(eos, dtype=torch.int64))
    drafter = BeamDrafter(runner, gamma, sampler, keep_tree=keep_tree)
    return drafter.draft(previous, pending, controls(*SETTINGS).at(runner.lengths.clone()))


def pick_like(draw: Draw, row: int, width: int) -> Pick:
    """The draw of one row, replayed with its own random numbers."""
    rows = controls(SETTINGS[row], positions=[len(PROMPTS[row]) - 1])

    def pick(log_weights: Array, depth: int) -> list[int]:
        if draw == "top":
            ranked = np.argsort(-log_weights, kind="stable")[:width]
            return [int(index) for index in ranked if log_weights[index] > -np.inf]
        numbers = uniform(rows, Stream.DRAFT, depth, width)[0].tolist()
        if draw == "sample":
            return [invert(log_weights, number) for number in numbers]
        return invert_without_replacement(log_weights, numbers)

    return pick


def tree_path(tree: TokenTree, row: int, node: int) -> tuple[int, ...]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, int(tree.tokens[row, node]))
        node = int(tree.parents[row, node])
    return tuple(path)


def check_level(tree: TokenTree, row: int, first_node: int, width: int, beams: list[Beam]) -> None:
    for slot in range(width):
        node = first_node + slot
        assert bool(tree.valid[row, node]) == (slot < len(beams))
        if slot < len(beams):
            assert tree_path(tree, row, node) == beams[slot].path
            assert float(tree.joint_draft_log_probs[row, node]) == pytest.approx(beams[slot].joint, abs=1e-9)
            assert bool(tree.carried[row, node]) == beams[slot].is_carried


@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
@pytest.mark.parametrize(("gamma", "width", "eos"), [(1, 3, []), (3, 1, []), (4, 4, []), (4, 4, [1]), (5, 6, [0, 2])])
@pytest.mark.parametrize("order", [3, 4])
def test_equals_the_definition(draw: Draw, gamma: int, width: int, eos: list[int], order: int) -> None:
    table = random_table(order + gamma, 4, order)
    tree = draft(table, gamma, width, draw, eos)
    for row, (prompt, setting) in enumerate(zip(PROMPTS, SETTINGS, strict=True)):
        law = table_law(table, prompt, setting)
        levels = beam_levels(law, gamma, frozenset(eos), pick_like(draw, row, width))
        for depth, beams in enumerate(levels):
            check_level(tree, row, depth * width, width, beams)
        winner = int(tree.winner[row]) - (gamma - 1) * width
        assert levels[-1][winner].weight == pytest.approx(max(beam.weight for beam in levels[-1]))
        assert levels[-1][winner].joint == pytest.approx(max(beam.joint for beam in levels[-1]))
    assert torch.equal(tree.ancestors, ancestor_bitmask(tree.parents))
    assert not tree.joint_draft_log_probs.isnan().any()


@pytest.mark.parametrize("eos", [[], [2]])
def test_a_wide_search_is_exhaustive(eos: list[int]) -> None:
    table = random_table(0, 4, 2)
    tree = draft(table, 2, 16, "top", eos, keep_tree=False)
    for row, (prompt, setting) in enumerate(zip(PROMPTS, SETTINGS, strict=True)):
        blocks = dict(enumerate_blocks(table_law(table, prompt, setting), 2, frozenset(eos)))
        best = max(blocks, key=blocks.__getitem__)
        drafted = tuple(tree.tokens[row].tolist())
        assert drafted[: len(best)] == best
        assert float(tree.joint_draft_log_probs[row, -1]) == pytest.approx(blocks[best])


@pytest.mark.parametrize("draw", ["top", "gumbel"])
def test_beams_without_replacement_are_distinct(draw: Draw) -> None:
    tree = draft(random_table(7, 4, 2), 3, 6, draw, [1])
    for row, depth in itertools.product(range(4), range(3)):
        nodes = [node for node in range(depth * 6, depth * 6 + 6) if tree.valid[row, node]]
        assert len({tree_path(tree, row, node) for node in nodes}) == len(nodes)


@pytest.mark.parametrize("draw", ["top", "gumbel"])
def test_fewer_candidates_than_beams_leave_invalid_nodes(draw: Draw) -> None:
    tree = draft(random_table(8, 4, 2), 3, 4, draw, [])
    # Row 2 keeps two tokens a step: two beams at depth 1, then four.
    assert tree.valid[2].tolist() == [True, True, False, False, *[True] * 8]
    for values in (tree.joint_draft_log_probs, tree.tokens.double()):
        assert not values.isnan().any()
    assert bool((tree.joint_draft_log_probs[~tree.valid] == -torch.inf).all())


def test_a_vocabulary_smaller_than_the_width_leaves_invalid_nodes() -> None:
    tree = draft(random_table(9, 4, 1), 2, 20, "sample", [0, 1, 2, 3])
    assert tree.valid.all()
    tree = draft(random_table(9, 4, 1), 2, 20, "gumbel", [0, 1, 2, 3])
    assert tree.valid.sum(1).tolist() == [8, 8, 4, 2 * int(tree.valid[3, :20].sum())]


def test_finished_beams_are_carried() -> None:
    tree = draft(random_table(10, 4, 2), 4, 4, "top", [0, 1, 2])
    assert tree.carried.any()
    for row in range(4):
        for node in range(4, 16):
            if not tree.valid[row, node]:
                continue
            parent = int(tree.parents[row, node])
            assert bool(tree.carried[row, node]) == (int(tree.tokens[row, parent]) in (0, 1, 2))
            if tree.carried[row, node]:
                assert tree.tokens[row, node] == tree.tokens[row, parent]
                assert tree.joint_draft_log_probs[row, node] == tree.joint_draft_log_probs[row, parent]


def test_the_winner_chain_is_the_winner_of_the_tree() -> None:
    table = random_table(11, 4, 3)
    for draw in ("top", "gumbel", "sample"):
        tree = draft(table, 4, 4, draw, [3])
        chain = draft(table, 4, 4, draw, [3], keep_tree=False)
        path, _ = path_to(tree, tree.winner)
        assert torch.equal(chain.tokens, tree.tokens.gather(1, path))
        assert torch.equal(chain.joint_draft_log_probs, tree.joint_draft_log_probs.gather(1, path))
        assert torch.equal(chain.carried, tree.carried.gather(1, path))
        assert chain.parents.tolist() == [[-1, 0, 1, 2]] * 4


def test_greedy_rows_take_the_best_beams_whatever_the_draw() -> None:
    runner, previous, pending = prefilled(random_table(12, 4, 2), PROMPTS)
    rows = controls(*[RowSettings(seed=seed, temperature=0) for seed in range(4)])
    trees = []
    for draw in ("top", "gumbel", "sample"):
        sampler = BeamSampler(width=3, draw=draw, eos_token_ids=torch.tensor([1]))
        trees.append(BeamDrafter(runner, 3, sampler).draft(previous, pending, rows))
    for tree in trees[1:]:
        assert torch.equal(tree.tokens, trees[0].tokens)
        assert torch.equal(tree.parents, trees[0].parents)


@pytest.mark.parametrize("draw", ["gumbel", "sample"])
def test_the_first_level_follows_its_law(draw: Draw) -> None:
    many, table = 20_000, random_table(13, 4, 1)
    setting = RowSettings(temperature=0.8)
    sampler = BeamSampler(width=2, draw=draw, eos_token_ids=torch.tensor([], dtype=torch.int64))
    runner, previous, pending = prefilled(table, [[2]] * many, room=4)
    tree = BeamDrafter(runner, 1, sampler).draft(previous, pending, seeded_controls(setting, torch.arange(many)))
    probs = np.exp(table_law(table, [2], setting)(()))
    pairs = itertools.product(range(4), repeat=2)
    if draw == "sample":
        law = {pair: float(probs[pair[0]] * probs[pair[1]]) for pair in pairs}
    else:
        law = {pair: plackett_luce(probs, pair) if pair[0] != pair[1] else 0.0 for pair in pairs}
    drawn = [tuple(pair) for pair in tree.tokens.tolist()]
    # A correct drafter fails with odds below 1e-9.
    assert empirical_distance(drawn, {tuple(cell): prob for cell, prob in law.items()}) < largest_distance(
        16, many, 1e-9
    )
