"""Positions, slots and compaction, seen through the exact table model."""

from collections.abc import Sequence

import pytest
import torch
from tests.oracles import path_nodes, table_logits
from tests.random_trees import random_trees
from tests.table_models import prefilled, random_table
from tests.tiny_models import tiny_model

from mtad.drafting import chain_tree
from mtad.errors import CapacityError
from mtad.models.runner import PREFILL_CHUNK
from mtad.models.table import TableRunner
from mtad.models.transformers_runner import TransformersRunner

PROMPTS = [[1], [2, 0, 3, 1], [3, 3], [0, 2, 1]]


def check_root(runner: TableRunner, table: torch.Tensor, sequences: Sequence[Sequence[int]]) -> None:
    previous = torch.tensor([sequence[-2] if len(sequence) > 1 else 0 for sequence in sequences])
    pending = torch.tensor([sequence[-1] for sequence in sequences])
    logits = runner.score_root(previous, pending)
    expected = [table_logits(table.numpy(), sequence).tolist() for sequence in sequences]
    assert logits.tolist() == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (4, 5), (6, 1)])
def test_a_kept_path_is_committed_token_by_token(seed: int, shape: tuple[int, int]) -> None:
    gamma, width = shape
    table = random_table(seed, 4, 4)
    runner, _, pending = prefilled(table, PROMPTS, room=120)
    sequences = [list(prompt) for prompt in PROMPTS]
    generator = torch.Generator().manual_seed(seed)
    for step in range(4):
        case = random_trees(10 * seed + step, len(PROMPTS), gamma, width, vocab=4)
        runner.score_tree(pending, case.tree)
        ends = torch.randint(-1, gamma * width, (len(PROMPTS),), generator=generator).tolist()
        paths = [path_nodes(nodes, end) for nodes, end in zip(case.rows, ends, strict=True)]
        padded = torch.tensor([path + [-1] * (gamma - len(path)) for path in paths])
        active = torch.tensor([(step + row) % 3 > 0 for row in range(len(PROMPTS))])
        runner.keep_path(padded, torch.tensor([len(path) for path in paths]), active)
        for row, path in enumerate(paths):
            if active[row]:
                sequences[row] += [*(case.rows[row][node].token for node in path), (step + row) % 4]
        pending = torch.tensor([sequence[-1] for sequence in sequences])
        assert runner.lengths.tolist() == [len(sequence) - 1 for sequence in sequences]
        if step % 2:
            runner.note_longest(int(runner.lengths.max()))
        check_root(runner, table, sequences)


def test_levels_scored_one_by_one_equal_the_tree_scored_at_once() -> None:
    table = random_table(1, 4, 4)
    case = random_trees(3, len(PROMPTS), 4, 3, vocab=4)
    whole, previous, pending = prefilled(table, PROMPTS)
    parts, _, _ = prefilled(table, PROMPTS)
    logits = whole.score_tree(pending, case.tree)
    assert torch.equal(parts.score_root(previous, pending), logits[:, 0])
    for depth in range(1, 5):
        nodes = slice((depth - 1) * 3, depth * 3)
        level = parts.score_level(case.tree.tokens[:, nodes], case.tree.ancestors[:, nodes], nodes.start, depth)
        assert torch.equal(level, logits[:, 1:][:, nodes])


@pytest.mark.parametrize("length", [PREFILL_CHUNK - 1, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 2])
def test_long_prompts_are_cached_in_chunks(length: int) -> None:
    table = random_table(2, 4, 3)
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(4, (length,), generator=generator).tolist()
    prompts = [long, [1, 2, 3], long[: PREFILL_CHUNK // 2]]
    runner, _, _ = prefilled(table, prompts, room=4)
    assert runner.lengths.tolist() == [len(prompt) - 1 for prompt in prompts]
    check_root(runner, table, prompts)
    assert runner._tokens[0, : length - 1].tolist() == long[:-1]


def test_an_auxiliary_model_catches_up_on_a_whole_draft() -> None:
    # A drafter never scores its last token; the next root call feeds it as the previous token.
    table = random_table(4, 4, 3)
    runner, previous, pending = prefilled(table, PROMPTS)
    runner.score_root(previous, pending)
    first = torch.tensor([[1], [2], [3], [0]])
    runner.score_level(first, torch.ones_like(first), 0, 1)
    active, kept = torch.ones(4, dtype=torch.bool), torch.full((4,), 2)
    runner.keep_path(torch.tensor([[0, 1]] * 4), kept, active)
    check_root(runner, table, [[*prompt, row, 2, 3] for prompt, row in zip(PROMPTS, [1, 2, 3, 0], strict=True)])


def test_selected_rows_may_repeat_and_change_places() -> None:
    table = random_table(5, 4, 3)
    runner, _, _ = prefilled(table, PROMPTS)
    runner.select_rows(torch.tensor([3, 1, 1]))
    check_root(runner, table, [PROMPTS[3], PROMPTS[1], PROMPTS[1]])
    runner.keep_path(torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.tensor([True] * 3))
    check_root(runner, table, [[*PROMPTS[3], 2], [*PROMPTS[1], 0], [*PROMPTS[1], 3]])


def test_allocating_again_forgets_everything() -> None:
    table = random_table(6, 4, 2)
    runner, _, pending = prefilled(table, PROMPTS)
    tokens = torch.ones(4, 2, dtype=torch.int64)
    runner.score_tree(pending, chain_tree(tokens, tokens.double()))
    runner.allocate(1, 6)
    runner.prefill(torch.tensor([[3, 1]]), torch.tensor([1]))
    check_root(runner, table, [[3, 1]])


def test_a_captured_cache_stays_where_it_is_for_texts_of_any_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersRunner, "can_be_captured", True)
    runner = TransformersRunner(tiny_model())
    slots = []
    for capacity in (100, 255, 256, 30, 511, 5000, 30):
        runner.allocate(1, capacity)
        slots.append(runner.num_slots)
    assert slots == [256, 256, 512, 512, 512, 5120, 256], "a cache too large for the text is not kept"


def test_a_cache_without_memory_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: int) -> None:
        raise RuntimeError("cannot allocate memory")

    runner = TableRunner(random_table(7, 4))
    monkeypatch.setattr(runner, "_allocate_slots", refuse)
    with pytest.raises(CapacityError) as error:
        runner.allocate(3, 100)
    assert str(error.value) == (
        "no memory for a cache of 3 rows of 100 tokens; "
        "lower --max-new-tokens, the number of prompts per batch, or the prompt length"
    )
