"""The chain drafter: one path, drawn from the distributions it carries."""

import numpy as np
import pytest
import torch
from tests.oracles import Path, invert
from tests.table_models import controls, prefilled, random_table, table_law

from mtad.drafting import DRAFTERS, ChainDrafter, DraftShape, NoDrafter
from mtad.models.table import TableRunner
from mtad.sampling import Stream, uniform
from mtad.structures import RowSettings

PROMPTS = [[1], [2, 0, 3], [3, 3]]
SETTINGS = [RowSettings(seed=1), RowSettings(seed=2, temperature=0.6, top_k=3), RowSettings(seed=3, top_p=0.5)]


def test_tokens_are_drawn_from_the_distributions_that_are_carried() -> None:
    table = random_table(0, 5, 3)
    runner, previous, pending = prefilled(table, PROMPTS)
    rows = controls(*SETTINGS).at(runner.lengths.clone())
    tree = ChainDrafter(runner, 4).draft(previous, pending, rows)
    assert tree.draft_log_probs is not None
    for row, (prompt, setting) in enumerate(zip(PROMPTS, SETTINGS, strict=True)):
        law, joint = table_law(table, prompt, setting), 0.0
        path: Path = ()
        for depth in range(4):
            log_probs = law(path)
            np.testing.assert_allclose(tree.draft_log_probs[row, depth].numpy(), log_probs, atol=1e-12)
            token = invert(log_probs, float(uniform(rows, Stream.DRAFT, depth + 1, 1)[row, 0]))
            assert int(tree.tokens[row, depth]) == token
            path, joint = (*path, token), joint + float(log_probs[token])
            assert float(tree.joint_draft_log_probs[row, depth]) == pytest.approx(joint)


@pytest.mark.parametrize("one_hot_at_zero", [True, False])
def test_greedy_rows_draft_the_most_likely_tokens(one_hot_at_zero: bool) -> None:
    table = random_table(1, 5, 2)
    runner, previous, pending = prefilled(table, PROMPTS)
    settings = [RowSettings(seed=seed, temperature=0) for seed in range(3)]
    tree = ChainDrafter(runner, 4).draft(previous, pending, controls(*settings, one_hot_at_zero=one_hot_at_zero))
    for row, prompt in enumerate(PROMPTS):
        law = table_law(table, prompt)
        path: Path = ()
        for _ in range(4):
            path = (*path, int(law(path).argmax()))
        assert tuple(tree.tokens[row].tolist()) == path


def test_no_drafter_gives_an_empty_tree() -> None:
    tree = NoDrafter().draft(torch.tensor([1, 2]), torch.tensor([3, 4]), controls(*SETTINGS[:2]))
    assert (tree.batch_size, tree.num_nodes, tree.depth) == (2, 0, 0)
    assert tree.tokens.shape == (2, 0)


@pytest.mark.parametrize("name", list(DRAFTERS))
def test_every_drafter_keeps_its_word(name: str) -> None:
    entry = DRAFTERS[name]
    runner, previous, pending = prefilled(random_table(2, 4, 2), PROMPTS)
    shape = DraftShape(gamma=3, beam_width=2, draw="gumbel", eos_token_ids=torch.tensor([1]), vocab_size=4)
    drafter = entry.build(runner if entry.needs_model else None, shape)
    if drafter.runner is not None and not entry.needs_model:
        drafter.runner.allocate(len(PROMPTS), 8)
        drafter.runner.prefill(torch.tensor([[1, 0, 0], [2, 0, 3], [3, 3, 0]]), runner.lengths)
    tree = drafter.draft(previous, pending, controls(*SETTINGS))
    assert tree.num_nodes == drafter.num_nodes
    assert tree.depth == drafter.gamma
    assert isinstance(drafter.runner, TableRunner) == entry.needs_model
    if entry.gives_chain:
        assert tree.num_nodes == tree.depth
    if entry.gives_distributions and tree.num_nodes:
        assert tree.draft_log_probs is not None
        mass = tree.draft_log_probs.exp().sum(-1)[tree.valid]
        assert mass.tolist() == pytest.approx([1] * len(mass))
