"""Counter-based draws: pure, independent, and of the right law.

Every bound is a concentration inequality, so that a correct generator fails with the odds written beside it. The
numbers are fixed by their seeds: a pass today is a pass tomorrow.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from tests.oracles import (
    Path,
    all_paths,
    empirical_distance,
    invert,
    invert_without_replacement,
    largest_distance,
    plackett_luce,
)
from tests.table_models import seeded_controls
from torch import Tensor

from mtad.sampling import (
    Stream,
    draw_ahead,
    draw_categorical,
    draw_without_replacement,
    uniform,
    uniform_along,
)
from mtad.structures import RowSettings

ODDS = 1e-9


def numbers(seeds: list[int], positions: list[int], stream: Stream, depth: int, count: int) -> Tensor:
    rows = seeded_controls(RowSettings(), torch.tensor(seeds)).at(torch.tensor(positions))
    return uniform(rows, stream, depth, count)


def test_numbers_do_not_depend_on_the_batch() -> None:
    seeds, positions = [7, 7, 2**62, 0], [0, 3, 3, 100_000]
    together = numbers(seeds, positions, Stream.DRAFT, 2, 5)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        assert torch.equal(numbers([seed], [position], Stream.DRAFT, 2, 5)[0], together[row])


def test_a_number_does_not_depend_on_how_many_are_drawn() -> None:
    assert torch.equal(numbers([1], [2], Stream.ACCEPT, 3, 9)[:, :4], numbers([1], [2], Stream.ACCEPT, 3, 4))


def test_numbers_drawn_ahead_are_the_same() -> None:
    plain = seeded_controls(RowSettings(), torch.tensor([3, 2**61, 0])).at(torch.tensor([0, 9, 70_000]))
    ahead = draw_ahead(plain, 3, 4)
    for stream, depth, count in itertools.product(Stream, range(6), (1, 4, 7)):
        assert torch.equal(uniform(ahead, stream, depth, count), uniform(plain, stream, depth, count))
    assert ahead.at(plain.positions + 1).noise is None


def test_numbers_along_the_text_are_those_of_its_places() -> None:
    rows = seeded_controls(RowSettings(), torch.tensor([3, 4])).at(torch.tensor([0, 9]))
    places = [uniform(rows.at(rows.positions + place), Stream.NEXT_TOKEN, 0, 1) for place in range(5)]
    assert torch.equal(uniform_along(rows, Stream.NEXT_TOKEN, 5), torch.cat(places, 1))


def test_every_coordinate_matters() -> None:
    drawn = {
        float(numbers([seed], [position], stream, depth, 2)[0, index])
        for seed, position, stream, depth, index in itertools.product(range(4), range(4), Stream, range(4), range(2))
    }
    # 384 numbers of 32 bits collide by chance with odds of 384^2 / 2^33 = 2e-5.
    assert len(drawn) == 4 * 4 * 3 * 4 * 2


def test_numbers_are_inside_the_open_interval() -> None:
    drawn = numbers(list(range(2000)), list(range(2000)), Stream.DRAFT, 1, 64)
    assert drawn.dtype == torch.float64
    assert float(drawn.min()) > 0
    assert float(drawn.max()) < 1


def test_neighbouring_indices_streams_depths_positions_and_seeds_are_all_uniform() -> None:
    many = 20_000
    up, zero = list(range(many)), [0] * many
    samples = [
        numbers(up, zero, Stream.DRAFT, 1, 1),
        numbers(zero, up, Stream.ACCEPT, 1, 1),
        numbers([5], [9], Stream.NEXT_TOKEN, 0, many),
        torch.cat([numbers([5], [9], Stream.DRAFT, depth, 1) for depth in range(1, 501)]),
    ]
    for sample in samples:
        values = np.sort(sample.flatten().numpy())
        steps = np.arange(len(values) + 1) / len(values)
        largest_gap = max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())
        # Dvoretzky-Kiefer-Wolfowitz: P(gap > e) <= 2 exp(-2 n e^2).
        assert largest_gap < math.sqrt(math.log(2 / ODDS) / (2 * len(values)))


@pytest.mark.parametrize("pair", ["indices", "streams", "depths", "positions", "seeds"])
def test_neighbours_are_independent(pair: str) -> None:
    many = 40_000
    up, zero = list(range(many)), [0] * many
    base = numbers(zero, up, Stream.DRAFT, 1, 2)
    second = {
        "indices": base[:, 1:],
        "streams": numbers(zero, up, Stream.ACCEPT, 1, 1),
        "depths": numbers(zero, up, Stream.DRAFT, 2, 1),
        "positions": numbers(zero, [position + 1 for position in up], Stream.DRAFT, 1, 1),
        "seeds": numbers([1] * many, up, Stream.DRAFT, 1, 1),
    }[pair]
    cells = torch.cat([base[:, :1], second], 1).mul(5).long().tolist()
    law = dict.fromkeys(all_paths(5, 2), 1 / 25)
    distance = empirical_distance([tuple(cell) for cell in cells], law)
    assert distance < largest_distance(25, many, ODDS)


def test_categorical_equals_inversion_of_the_cumulative_distribution() -> None:
    generator = np.random.default_rng(0)
    logs = np.log(generator.dirichlet(np.ones(7), size=500))
    logs[generator.random(logs.shape) < 0.3] = -np.inf
    logs[:, 3] = -1.0
    uniforms = generator.random((500, 4))
    drawn = draw_categorical(torch.from_numpy(logs), torch.from_numpy(uniforms))
    expected = [[invert(row, value) for value in values] for row, values in zip(logs, uniforms, strict=True)]
    assert drawn.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_never_draws_what_is_impossible(dtype: torch.dtype) -> None:
    edges = torch.tensor([[2.0**-33, 0.25, 0.5, 0.75, 1 - 2.0**-33]], dtype=torch.float64)
    for pattern in itertools.product([True, False], repeat=6):
        if any(pattern):
            logs = torch.where(torch.tensor([pattern]), -0.3, -torch.inf).to(dtype)
            drawn = draw_categorical(logs, edges)[0].tolist()
            assert all(pattern[category] for category in drawn)
            assert drawn[0] == pattern.index(True)
            assert drawn[-1] == 5 - pattern[::-1].index(True)


def test_categorical_takes_unnormalised_and_huge_logs() -> None:
    logs = torch.tensor([[900.0, 900.0 + math.log(3), -torch.inf]])
    assert draw_categorical(logs, torch.tensor([[0.24, 0.26]]).double()).tolist() == [[0, 1]]


def test_a_number_on_a_border_belongs_to_the_next_category() -> None:
    logs = torch.tensor([[0.5, 0.0, 0.25, 0.25]], dtype=torch.float64).log()
    numbers = torch.tensor([[0.25, 0.5, 0.75]], dtype=torch.float64)
    assert draw_categorical(logs, numbers).tolist() == [[0, 2, 3]]


def test_without_replacement_equals_sequential_inversion() -> None:
    generator = np.random.default_rng(1)
    logs = np.log(generator.dirichlet(np.ones(6), size=300))
    logs[generator.random(logs.shape) < 0.5] = -np.inf
    logs[:, 2] = -2.0
    uniforms = generator.random((300, 6))
    drawn = draw_without_replacement(torch.from_numpy(logs), torch.from_numpy(uniforms))
    rows = zip(logs, uniforms, strict=True)
    assert drawn.tolist() == [invert_without_replacement(row, list(values)) for row, values in rows]


def test_without_replacement_follows_the_plackett_luce_law() -> None:
    many, probs = 40_000, np.array([0.45, 0.3, 0.2, 0.05])
    rows = seeded_controls(RowSettings(), torch.arange(many))
    logs = torch.from_numpy(np.log(probs)).expand(many, -1)
    drawn = draw_without_replacement(logs, uniform(rows, Stream.DRAFT, 1, 3))
    law: dict[Path, float] = {order: plackett_luce(probs, order) for order in itertools.permutations(range(4), 3)}
    assert math.isclose(sum(law.values()), 1)
    distance = empirical_distance([tuple(order) for order in drawn.tolist()], law)
    assert distance < largest_distance(len(law), many, ODDS)


def test_without_replacement_gives_minus_one_when_nothing_is_left() -> None:
    logs = torch.tensor([[-torch.inf, -1.0, -torch.inf, -2.0], [0.0, -1.0, -2.0, -3.0]])
    drawn = draw_without_replacement(logs, torch.full((2, 4), 0.5, dtype=torch.float64)).tolist()
    assert sorted(drawn[0][:2]) == [1, 3]
    assert drawn[0][2:] == [-1, -1]
    assert sorted(drawn[1]) == [0, 1, 2, 3]


def test_without_replacement_leaves_its_input_alone() -> None:
    logs = torch.tensor([[0.0, -1.0, -2.0]])
    draw_without_replacement(logs, torch.full((1, 3), 0.1, dtype=torch.float64))
    assert logs.tolist() == [[0.0, -1.0, -2.0]]
