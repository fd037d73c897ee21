"""Multi-token joint decoding by beam sampling with the target, and beam sampling of whole answers."""

import numpy as np
import pytest
from tests.oracles import Array, Beam, Pick, beam_levels, invert, invert_without_replacement
from tests.table_models import Run, controls, random_table, table_law

from mtad.drafting.beams import Draw
from mtad.sampling import Stream, uniform
from mtad.structures import RowSettings

PROMPTS = [[1], [0, 2, 1], [3, 3]]
SETTINGS = [RowSettings(seed=4), RowSettings(seed=5, temperature=0.7, top_k=3), RowSettings(seed=6, top_p=0.7)]


def choose(draw: Draw, log_weights: Array, numbers: list[float]) -> list[int]:
    if draw == "top":
        return [int(index) for index in np.argsort(-log_weights, kind="stable")[: len(numbers)]]
    if draw == "sample":
        return [invert(log_weights, number) for number in numbers]
    return invert_without_replacement(log_weights, numbers)


def block_pick(draw: Draw, setting: RowSettings, position: int, width: int) -> Pick:
    """Draws of one block: all at the block's position, counted by depth."""
    rows = controls(setting, positions=[position])
    return lambda log_weights, depth: choose(draw, log_weights, uniform(rows, Stream.DRAFT, depth, width)[0].tolist())


def answer_pick(draw: Draw, setting: RowSettings, position: int, width: int) -> Pick:
    """Draws of a whole answer: the position moves on with every token."""

    def pick(log_weights: Array, depth: int) -> list[int]:
        rows = controls(setting, positions=[position + depth - 1])
        return choose(draw, log_weights, uniform(rows, Stream.DRAFT, depth, width)[0].tolist())

    return pick


def winner(beams: list[Beam]) -> Beam:
    return max(beams, key=lambda beam: beam.joint)


def uncarried(path: tuple[int, ...], eos: frozenset[int]) -> list[int]:
    ends = [index for index, token in enumerate(path) if token in eos]
    return list(path[: ends[0] + 1]) if ends else list(path)


@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
@pytest.mark.parametrize(("gamma", "width"), [(1, 3), (3, 4), (4, 1)])
@pytest.mark.parametrize("eos", [frozenset[int](), frozenset({2})])
def test_each_block_is_the_best_beam(draw: Draw, gamma: int, width: int, eos: frozenset[int]) -> None:
    target = random_table(1, 4, 3)
    run = Run(target, target, {"method": "mtjd", "gamma": gamma, "beam_width": width, "draw": draw}, eos)
    results = run.generate(PROMPTS, SETTINGS, [9] * 3)
    for prompt, setting, result in zip(PROMPTS, SETTINGS, results, strict=True):
        expected: list[int] = []
        while len(expected) < 9 and not set(expected) & eos:
            context = [*prompt, *expected]
            pick = block_pick(draw, setting, len(context) - 1, width)
            beams = beam_levels(table_law(target, context, setting), gamma, eos, pick)[-1]
            expected.extend(uncarried(winner(beams).path, eos))
        assert list(result.token_ids) == expected[:9]


def test_each_token_of_a_block_costs_one_call() -> None:
    target = random_table(2, 4, 2)
    run = Run(target, target, {"method": "mtjd", "gamma": 3, "beam_width": 2})
    decoder = run.decoder()
    decoder.prefill(PROMPTS, SETTINGS, [12] * 3)
    before = run.runners[0].num_calls
    outcomes = [decoder.step([True] * 3) for _ in range(2)]
    assert run.runners[0].num_calls - before == 6
    assert [outcome.target_calls for step in outcomes for outcome in step if outcome] == [3] * 6


@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
@pytest.mark.parametrize("eos", [frozenset[int](), frozenset({2})])
def test_beam_sampling_returns_the_best_beam_of_the_whole_answer(draw: Draw, eos: frozenset[int]) -> None:
    target, limit = random_table(3, 4, 3), 6
    run = Run(target, target, {"method": "beam_sampling", "beam_width": 3, "draw": draw}, eos)
    results = run.generate(PROMPTS, SETTINGS, [limit] * 3)
    for prompt, setting, result in zip(PROMPTS, SETTINGS, results, strict=True):
        pick = answer_pick(draw, setting, len(prompt) - 1, 3)
        levels = beam_levels(table_law(target, prompt, setting), limit, eos, pick)
        end = next((index for index, beams in enumerate(levels) if winner(beams).is_finished), limit - 1)
        assert list(result.token_ids) == uncarried(winner(levels[end]).path, eos)
        assert result.stats.target_calls == end + 1
        assert result.finish_reason == ("stop" if result.token_ids[-1] in eos else "length")


def test_greedy_beam_sampling_is_beam_search() -> None:
    target = random_table(4, 4, 3)
    run = Run(target, target, {"method": "beam_sampling", "beam_width": 3, "draw": "sample"}, temperature=0.0)
    settings = [RowSettings(seed=seed, temperature=0, top_k=1) for seed in range(3)]
    for prompt, result in zip(PROMPTS, run.generate(PROMPTS, settings, [6] * 3), strict=True):
        pick = answer_pick("top", RowSettings(), 0, 3)
        assert result.token_ids == winner(beam_levels(table_law(target, prompt), 6, frozenset(), pick)[-1]).path


def test_a_block_ends_with_its_eos() -> None:
    target = random_table(5, 3, 1)
    run = Run(target, target, {"method": "mtjd", "gamma": 4, "beam_width": 3}, frozenset({0, 1}))
    decoder = run.decoder()
    decoder.prefill([[0], [1], [2]], SETTINGS, [12] * 3)
    blocks = [outcome for outcome in decoder.step([True] * 3) if outcome]
    for block in blocks:
        assert len(block.tokens) == len(block.log_probs)
        assert not set(block.tokens[:-1]) & {0, 1}
    assert min(len(block.tokens) for block in blocks) < 4
