"""The draft's own beams stand where its drafter would put them, and teach what the target says there."""

import itertools
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_model

from mtad.distill.beams import BEAM_DEPTH, BEAM_WIDTH, TREES_PER_TEXT, Layout, draw_beams, spread_roots
from mtad.distill.teacher import Teacher

TEXTS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 0, 0]])
ROOTS = torch.tensor([[2, 4], [1, 3]])
NO_ENDS = torch.tensor([], dtype=torch.int64)


def _paths(layout: Layout, row: int) -> dict[int, list[int]]:
    """The tokens that every column beside the texts stands for, its own last."""
    found = {}
    for column in range(TEXTS.shape[1], layout.tokens.shape[1]):
        seen = layout.visible[row, column].nonzero().squeeze(1)
        order = layout.positions[row, seen].argsort()
        found[column] = layout.tokens[row, seen[order]].tolist()
    return found


@torch.no_grad()
def _best_beams(draft: Any, prefix: list[int]) -> list[list[tuple[int, ...]]]:
    """Beam search by plain calls, level by level."""
    levels: list[list[tuple[int, ...]]] = []
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(BEAM_DEPTH):
        grown: list[tuple[tuple[int, ...], float]] = []
        for path, weight in beams:
            log_probs = draft(input_ids=torch.tensor([[*prefix, *path]])).logits[0, -1].log_softmax(-1)
            grown += [((*path, token), weight + float(value)) for token, value in enumerate(log_probs)]
        beams = sorted(grown, key=lambda item: -item[1])[:BEAM_WIDTH]
        levels.append([path for path, _ in beams])
    return levels


def test_the_beams_are_those_of_a_plain_beam_search() -> None:
    draft = tiny_model("llama")
    layout, places = draw_beams(draft, TEXTS, ROOTS, None, NO_ENDS)
    for row, tree in itertools.product(range(2), range(2)):
        prefix = TEXTS[row, : int(ROOTS[row, tree]) + 1].tolist()
        expected = _best_beams(draft, prefix)
        paths = list(_paths(layout, row).values())
        for depth in range(BEAM_DEPTH):
            first = (depth * 2 + tree) * BEAM_WIDTH
            level = [tuple(path[len(prefix) :]) for path in paths[first : first + BEAM_WIDTH]]
            assert level == expected[depth]
            assert all(path[: len(prefix)] == prefix for path in paths[first : first + BEAM_WIDTH])
    assert len(places) == 2 * 2 * BEAM_DEPTH * BEAM_WIDTH


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
def test_one_call_says_of_every_node_what_its_own_text_would_say(name: str) -> None:
    layout, places = draw_beams(tiny_model("llama"), TEXTS, ROOTS, None, NO_ENDS)
    target = tiny_model(name, seed=1)
    teacher = Teacher(target, 61)
    found = teacher.logits(teacher.encode(layout.tokens, places, layout.arguments(target)))
    width = layout.tokens.shape[1]
    for place, logits in zip(places.tolist(), found, strict=True):
        path = _paths(layout, place // width)[place % width]
        expected = target(input_ids=torch.tensor([path])).logits[0, -1]
        # Gemma 2 takes its softmax in float32.
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_beams_that_ended_teach_nothing() -> None:
    draft = tiny_model("llama")
    whole, places = draw_beams(draft, TEXTS, ROOTS, None, NO_ENDS)
    ending = whole.tokens[0, TEXTS.shape[1]].view(1)
    layout, fewer = draw_beams(draft, TEXTS, ROOTS, None, ending)
    assert 0 < len(fewer) < len(places)
    assert not (layout.tokens.flatten()[fewer] == ending).any()
    width = layout.tokens.shape[1]
    for place in fewer.tolist():
        drafted = [
            token
            for column, token in zip(
                layout.visible[place // width, place % width].nonzero().squeeze(1).tolist(),
                layout.tokens[place // width, layout.visible[place // width, place % width]].tolist(),
                strict=True,
            )
            if column >= TEXTS.shape[1]
        ]
        assert int(ending) not in drafted


def test_the_places_are_spread_over_the_answers() -> None:
    spans = torch.tensor([[3, 80], [5, 2]])
    one, two = (spread_roots(spans, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(one, two)
    assert one.shape == (2, TREES_PER_TEXT)
    assert ((one[0] - 3) // 10).tolist() == list(range(8))
    assert set(one[1].tolist()) == {5, 6}
    assert not torch.equal(one, spread_roots(spans, torch.Generator().manual_seed(1)))
