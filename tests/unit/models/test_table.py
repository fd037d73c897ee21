"""The table model: exact, and strict about what a query can see."""

import numpy as np
import pytest
import torch
from tests.oracles import path_nodes, table_logits
from tests.random_trees import random_trees
from tests.table_models import prefilled, random_table

from mtad.drafting import chain_tree
from mtad.models.forward import ForwardBatch
from mtad.models.table import TableRunner

PROMPTS = [[1], [2, 0, 3, 1], [3, 3]]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_root_logits_are_looked_up_by_the_last_tokens(order: int) -> None:
    table = random_table(0, 4, order)
    runner, previous, pending = prefilled(table, PROMPTS)
    logits = runner.score_root(previous, pending)
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_array_equal(logits[row].numpy(), table_logits(table.numpy(), prompt))


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_tree_logits_follow_each_path(order: int, seed: int) -> None:
    table = random_table(1, 4, order)
    case = random_trees(seed, len(PROMPTS), 4, 3, vocab=4)
    runner, _, pending = prefilled(table, PROMPTS)
    logits = runner.score_tree(pending, case.tree)
    for row, prompt in enumerate(PROMPTS):
        nodes = case.rows[row]
        for node in range(-1, len(nodes)):
            tokens = [nodes[step].token for step in path_nodes(nodes, node)]
            expected = table_logits(table.numpy(), [*prompt, *tokens])
            np.testing.assert_array_equal(logits[row, node + 1].numpy(), expected)


def one_query(position: int, visible: int, slot: int) -> ForwardBatch:
    def column(value: int) -> torch.Tensor:
        return torch.tensor([[value]])

    return ForwardBatch(
        tokens=column(0),
        positions=column(position),
        slots=column(slot),
        prefix_lengths=column(visible),
        ancestors=column(0),
        tree_starts=torch.tensor([slot + 1]),
        num_slots=slot + 1,
        num_logits=1,
    )


@pytest.mark.parametrize(("position", "visible", "slot"), [(4, 2, 4), (5, 5, 4)])
def test_a_context_that_is_not_visible_is_noticed(position: int, visible: int, slot: int) -> None:
    runner, _, _ = prefilled(random_table(2, 4, 2), [[0, 1, 2, 3, 0]])
    with pytest.raises(AssertionError, match="not visible exactly once"):
        runner.forward(one_query(position, visible, slot))


def test_a_wrong_compaction_changes_the_logits() -> None:
    table = random_table(3, 4, 3)
    runner, _, pending = prefilled(table, [[1, 2]])
    tokens = torch.tensor([[3, 0]])
    runner.score_tree(pending, chain_tree(tokens, tokens.double()))
    runner.keep_path(torch.tensor([[1, 0]]), torch.tensor([2]), torch.tensor([True]))
    with pytest.raises(AssertionError, match="not visible exactly once"):
        runner.score_root(torch.tensor([0]), torch.tensor([1]))


def test_calls_are_counted() -> None:
    runner = TableRunner(random_table(4, 4))
    runner.allocate(1, 10)
    runner.prefill(torch.tensor([[1, 2]]), torch.tensor([1]))
    runner.score_root(torch.tensor([1]), torch.tensor([2]))
    assert runner.num_calls == 2
