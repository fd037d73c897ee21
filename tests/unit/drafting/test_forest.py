"""Drafting from several committed beams at once."""

import pytest
import torch
from tests.table_models import controls, prefilled, random_table

from mtad.drafting import BeamDrafter, Beams, BeamSampler, Forest, ForestDrafter, repeat_tree
from mtad.drafting.beams import Draw
from mtad.structures import RowSettings, ancestor_bitmask

SETTINGS = [RowSettings(seed=1), RowSettings(seed=2, temperature=0.7, top_k=3)]
PROMPTS = [[1, 2], [0, 3, 3]]
WIDTH, GAMMA = 3, 3


def committed(weights: list[list[float]]) -> Beams:
    logs = torch.tensor(weights).log()
    nothing = torch.zeros(logs.shape, dtype=torch.int64)
    return Beams(nothing, nothing, logs, logs, nothing.bool(), nothing.bool())


def forest_of(prompts: list[list[int]], weights: list[list[float]], draw: Draw) -> Forest:
    """The forest behind `WIDTH` committed texts a request."""
    runner, previous, pending = prefilled(random_table(1, 5, 3), prompts)
    sampler = BeamSampler(width=WIDTH, draw=draw, eos_token_ids=torch.tensor([], dtype=torch.int64))
    rows = controls(*SETTINGS).at(runner.lengths[::WIDTH].clone())
    return ForestDrafter(runner, GAMMA, sampler).draft(committed(weights), previous, pending, rows)


@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
@pytest.mark.parametrize("place", [0, 2])
def test_one_beam_with_all_the_weight_drafts_the_beam_tree(draw: Draw, place: int) -> None:
    runner, previous, pending = prefilled(random_table(1, 5, 3), PROMPTS)
    sampler = BeamSampler(width=WIDTH, draw=draw, eos_token_ids=torch.tensor([], dtype=torch.int64))
    expected = BeamDrafter(runner, GAMMA, sampler).draft(
        previous, pending, controls(*SETTINGS).at(runner.lengths.clone())
    )
    others = [[4] * len(prompt) for prompt in PROMPTS]
    texts = [
        [prompt if index == place else other for index in range(WIDTH)]
        for prompt, other in zip(PROMPTS, others, strict=True)
    ]
    weights = [[float(index == place) for index in range(WIDTH)]] * 2
    found = forest_of([text for request in texts for text in request], weights, draw)
    assert torch.equal(found.tree.tokens, expected.tokens)
    assert torch.equal(found.tree.ancestors, expected.ancestors)
    assert (found.levels[-1].roots == place).all()


def test_paths_roots_and_ancestors_agree() -> None:
    texts = [[1, 2], [3, 0], [2, 2], [0, 1, 1], [4, 4, 4], [1, 0, 1]]
    found = forest_of(texts, [[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], "sample")
    assert torch.equal(found.tree.ancestors, ancestor_bitmask(found.tree.parents))
    for depth, level in enumerate(found.levels, start=1):
        bits = (torch.ones_like(level.paths[:, :, :depth]) << level.paths[:, :, :depth]).sum(2)
        assert level.beams.ancestors is not None
        assert torch.equal(bits, level.beams.ancestors)
        assert torch.equal(level.roots, found.levels[0].roots.gather(1, level.paths[:, :, 0]))
        torch.testing.assert_close(level.law.flatten(1).sum(1), torch.ones(2, dtype=torch.float64))
    assert torch.equal(found.levels[0].roots, found.levels[0].beams.origins)


def test_a_tree_is_repeated_row_by_row() -> None:
    texts = [[1, 2], [3, 0], [2, 2], [0, 1, 1], [4, 4, 4], [1, 0, 1]]
    tree = forest_of(texts, [[0.5, 0.3, 0.2]] * 2, "gumbel").tree
    repeated = repeat_tree(tree, 3)
    assert repeated.batch_size == 6
    assert torch.equal(repeated.tokens[3:], tree.tokens[1:].expand(3, -1))
    assert torch.equal(repeated.winner[:3], tree.winner[:1].expand(3))
