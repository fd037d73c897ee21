"""Predictions follow their formula, and sizes are chosen by them."""

import random

import pytest
from tests.unit.distill.conftest import quick_options

from mtad.distill.cost_model import (
    VERIFIED_NODES,
    PairCosts,
    best_length,
    choose_size,
    expected_tokens,
    measure_costs,
    predicted_speedup,
)
from mtad.models.loading import LoadedModels


def test_the_expected_tokens_are_those_of_a_simulation() -> None:
    generator = random.Random(0)
    counts = []
    for _ in range(20_000):
        kept = 0
        while kept < 4 and generator.random() < 0.6:
            kept += 1
        counts.append(1 + kept)
    assert expected_tokens(0.6, 4) == pytest.approx(sum(counts) / len(counts), abs=0.03)
    assert expected_tokens(1.0, 4) == 5


def test_a_free_draft_is_drafted_long_and_a_dear_one_short() -> None:
    verify = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
    free = PairCosts(target_ms=1, draft=0.0, draft_level=0.0, verify=verify)
    dear = PairCosts(target_ms=1, draft=1.0, draft_level=1.0, verify=verify)
    assert best_length(0.6, free)[0] == 8
    length, speedup = best_length(0.6, dear)
    assert length == 1
    assert speedup == pytest.approx(0.8)
    assert predicted_speedup(2.0, 0.25, 1.5, 2) == pytest.approx(1.0)


def test_a_target_as_its_own_draft_costs_what_it_costs(models: LoadedModels) -> None:
    (costs,) = measure_costs(models.target, [models.target], 2)
    assert costs.draft == 1
    assert costs.target_ms > 0
    assert set(costs.verify) == set(VERIFIED_NODES)


def test_one_of_the_named_sizes_is_chosen(models: LoadedModels) -> None:
    name, predicted = choose_size(models, quick_options(), repeats=1)
    assert set(predicted) == {"nano", "small", "base"}
    assert predicted[name] == max(predicted.values())
    assert quick_options(size=(name,)).size == (name,)
