"""Speculative beam sampling: the law of its beams, layer by layer, iteration by iteration and over whole answers."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from tests.beam_enumeration import (
    Chance,
    Given,
    Pair,
    Rule,
    State,
    beam_sampling,
    difference,
    every_outcome,
    iterate,
    law_of,
    texts,
)
from tests.oracles import Beam, Path, empirical_distance, largest_distance, sequence_log_probs
from tests.table_models import Run, controls, random_table, table_law

from mtad.drafting.beams import Draw
from mtad.structures import GenerationResult, RowSettings

DRAWS: tuple[Draw, ...] = ("sample", "gumbel", "top")
PROMPT = [1, 0]


def table_pair(vocab: int, eos: frozenset[int] = frozenset(), seed: int = 1) -> Pair:
    target, draft = (random_table(seed + index, vocab, 2) for index in range(2))
    return Pair(table_law(target, PROMPT), table_law(draft, PROMPT), vocab, eos)


def committed(pair: Pair, width: int) -> list[Beam]:
    """Some beams after one layer, one of them finished where tokens can end a beam."""
    paths = [(token % pair.vocab,) for token in range(width)]
    weights = np.arange(2, 2 + width) / np.arange(2, 2 + width).sum()
    joints = [float(pair.target(())[path[0]]) for path in paths]
    return [
        Beam(path, joint, float(weight), is_finished=path[0] in pair.eos)
        for path, joint, weight in zip(paths, joints, weights, strict=True)
    ]


def completed_law(beams: list[Beam], pair: Pair, rule: Rule, gamma: int) -> dict[State, float]:
    """Law of the list of beams `gamma + 1` layers down: an iteration, then plain beam sampling."""
    law: dict[State, float] = defaultdict(float)
    seen: dict[tuple[object, ...], dict[State, float]] = {}

    def run(chance: Chance) -> tuple[list[Beam], int]:
        found, depth, _ = iterate(beams, pair, rule, gamma, chance)
        return found, gamma + 1 - depth

    for (found, missing), probability in every_outcome(run):
        key = (texts(found), tuple(round(beam.weight, 12) for beam in found), missing)
        if key not in seen:
            seen[key] = law_of(lambda chance, f=found, m=missing: texts(beam_sampling(f, pair, rule, m, chance)))  # type: ignore[misc]
        for state, share in seen[key].items():
            law[state] += probability * share
    return law


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    ("vocab", "gamma", "width", "eos"),
    [(2, 2, 2, frozenset[int]()), (3, 1, 2, frozenset[int]()), (3, 1, 2, frozenset({1})), (4, 2, 1, frozenset({3}))],
)
def test_an_iteration_has_the_law_of_beam_sampling(
    draw: Draw, vocab: int, gamma: int, width: int, eos: frozenset[int]
) -> None:
    pair, rule = table_pair(vocab, eos), Rule(width, draw)
    beams = committed(pair, width)
    expected = law_of(lambda chance: texts(beam_sampling(beams, pair, rule, gamma + 1, chance)))
    found = completed_law(beams, pair, rule, gamma)
    assert sum(found.values()) == pytest.approx(1)
    assert difference(found, expected) < 1e-12


def test_a_dynamic_width_is_not_beam_sampling() -> None:
    pair, rule = table_pair(2), Rule(2, "sample", acceptance=0.9)
    beams = committed(pair, 2)
    expected = law_of(lambda chance: texts(beam_sampling(beams, pair, rule, 2, chance)))
    assert difference(completed_law(beams, pair, rule, 1), expected) > 0.01


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("draw", ["sample", "gumbel"])
def test_width_one_has_the_law_of_single_tokens(draw: Draw, acceptance: float) -> None:
    pair, rule = table_pair(4), Rule(1, draw, acceptance)
    found = completed_law([Beam((), 0.0, 1.0)], pair, rule, 2)
    expected = law_of(lambda chance: texts(beam_sampling([Beam((), 0.0, 1.0)], pair, rule, 3, chance)))
    singles = {(path,): float(np.exp(sum(sequence_log_probs(pair.target, path)))) for ((path,), _) in expected.items()}
    assert difference(found, singles) < 1e-12


@dataclass
class SlowAnswer:
    tokens: list[int]
    accepted: list[int]


def slow_answer(pair: Pair, rule: Rule, gamma: int, setting: RowSettings, start: int, limit: int) -> SlowAnswer:
    """A whole answer with the numbers that the decoder draws."""
    beams, count, accepted = [Beam((), 0.0, 1.0)], 0, []
    while True:
        chance = Given(controls(setting, positions=[start + count]))
        beams, depth, passed = iterate(beams, pair, rule, gamma, chance, limit - count)
        count += depth
        accepted.append(passed)
        best = max(beams, key=lambda beam: beam.joint)
        if best.is_finished or count >= limit:
            return SlowAnswer(uncarried(best.path, pair.eos), accepted)


def uncarried(path: Path, eos: frozenset[int]) -> list[int]:
    ends = [index for index, token in enumerate(path) if token in eos]
    return list(path[: ends[0] + 1]) if ends else list(path)


PROMPTS = [[1], [0, 2, 1], [3, 3]]
WARPS = [
    {},
    {"temperature": 0.7, "top_k": 3},
    {"top_p": 0.7},
    {"temperature": 1.4},
]


def check_against_slow(rule: Rule, gamma: int, eos: frozenset[int], temperature: float = 1.0) -> list[GenerationResult]:
    target, draft = random_table(3, 4, 3), random_table(4, 4, 3)
    target = target + draft
    options = {
        "method": "dynamic_beam",
        "gamma": gamma,
        "beam_width": rule.width,
        "draw": rule.draw,
        "beam_acceptance": rule.acceptance,
    }
    run = Run(target, draft, options, eos, temperature=temperature)
    prompts = PROMPTS * len(WARPS)
    settings = [RowSettings(seed=seed, **WARPS[seed % len(WARPS)]) for seed in range(len(prompts))]  # type: ignore[arg-type]
    if temperature == 0:
        settings = [RowSettings(seed=seed, temperature=0.0) for seed in range(len(prompts))]
    results = run.generate(prompts, settings, [9 + row % 3 for row in range(len(prompts))])
    for row, (prompt, setting, result) in enumerate(zip(prompts, settings, results, strict=True)):
        warp = None if temperature == 0 else setting
        pair = Pair(table_law(target, prompt, warp), table_law(draft, prompt, warp), 4, eos)
        slow_rule = Rule(rule.width, "top" if temperature == 0 else rule.draw, rule.acceptance)
        expected = slow_answer(pair, slow_rule, gamma, setting, len(prompt) - 1, 9 + row % 3)
        assert list(result.token_ids) == expected.tokens
        assert list(result.accepted_lengths) == expected.accepted
        assert result.stats.target_calls == len(expected.accepted)
        unwarped = sequence_log_probs(table_law(target, prompt), expected.tokens)
        assert result.log_probs == pytest.approx(unwarped, abs=1e-9)
    return results


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("gamma", "width"), [(1, 3), (2, 2), (3, 3), (2, 1)])
@pytest.mark.parametrize("acceptance", [0.0, 0.8])
@pytest.mark.parametrize("eos", [frozenset[int](), frozenset({2})])
def test_answers_are_those_of_the_slow_version(
    draw: Draw, gamma: int, width: int, acceptance: float, eos: frozenset[int]
) -> None:
    check_against_slow(Rule(width, draw, acceptance), gamma, eos)


@pytest.mark.parametrize("acceptance", [0.0, 0.8])
def test_greedy_answers_are_those_of_the_slow_version(acceptance: float) -> None:
    check_against_slow(Rule(3, "sample", acceptance), 2, frozenset({2}), temperature=0.0)


def test_the_cases_above_pass_layers_and_fail_them() -> None:
    kept = [
        count for result in check_against_slow(Rule(3, "sample"), 3, frozenset()) for count in result.accepted_lengths
    ]
    assert {0, 1, 2, 3} == set(kept)


@pytest.mark.parametrize("draw", ["top", "gumbel"])
def test_deterministic_beams_are_those_of_beam_search(draw: Draw) -> None:
    target, draft = random_table(5, 5, 2), random_table(6, 5, 2)
    temperature = 1.0 if draw == "top" else 0.0
    settings = [RowSettings(seed=seed, temperature=temperature) for seed in range(3)]
    shape = {"beam_width": 3, "draw": draw, "beam_acceptance": 0.0}
    answers = [
        Run(target, draft, {"method": method, **shape}, frozenset({4}), temperature).generate(
            PROMPTS, settings, [12] * 3
        )
        for method in ("dynamic_beam", "beam_sampling")
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert ours.token_ids == theirs.token_ids


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
def test_a_draft_equal_to_the_target_passes_every_layer_at_full_width(draw: Draw, acceptance: float) -> None:
    table = random_table(7, 5, 2)
    options = {"method": "dynamic_beam", "gamma": 3, "beam_width": 3, "draw": draw, "beam_acceptance": acceptance}
    settings = [RowSettings(seed=seed, temperature=0.5 + seed) for seed in range(3)]
    for result in Run(table, table, options).generate(PROMPTS, settings, [12] * 3):
        assert result.accepted_lengths == (3, 3, 3)
        assert result.stats.acceptance_by_depth == (1.0, 1.0, 1.0)
        assert result.stats.tokens_per_call == 4
        assert result.provenance == ("drafted", "drafted", "drafted", "target") * 3


MANY, LENGTH, VOCAB = 12_000, 3, 3


@pytest.mark.parametrize("draw", ["sample", "gumbel"])
def test_whole_answers_have_the_law_of_beam_sampling(draw: Draw) -> None:
    # A correct decoder fails this with odds below 1e-9; see `largest_distance`.
    pair, rule = table_pair(VOCAB, frozenset({2})), Rule(2, draw)
    expected = law_of(lambda chance: slow_beam_answer(pair, rule, chance))
    target, draft = (random_table(1 + index, VOCAB, 2) for index in range(2))
    options = {"method": "dynamic_beam", "gamma": 2, "beam_width": 2, "draw": draw, "beam_acceptance": 0.0}
    run = Run(target, draft, options, frozenset({2}))
    results = run.generate([PROMPT] * MANY, [RowSettings(seed=seed) for seed in range(MANY)], [LENGTH] * MANY)
    found = [result.token_ids for result in results]
    assert empirical_distance(found, expected) < largest_distance(len(expected), MANY, 1e-9)


def slow_beam_answer(pair: Pair, rule: Rule, chance: Chance) -> Path:
    """The best beam of plain beam sampling, at the first layer where it is finished or the limit is reached."""
    beams = [Beam((), 0.0, 1.0)]
    for depth in range(1, LENGTH + 1):
        beams = beam_sampling(beams, pair, rule, 1, chance, depth)
        best = max(beams, key=lambda beam: beam.joint)
        if best.is_finished:
            break
    return tuple(uncarried(best.path, pair.eos))
