"""One layer of speculative beam sampling: its exact law, and the width that drafts fill."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from tests.beam_enumeration import (
    Chance,
    Rule,
    Script,
    accepted_law,
    difference,
    draw_several,
    every_outcome,
    judge_layer,
    law_of,
    normalised,
    width_to_pass,
)
from tests.enumeration import cells
from tests.oracles import Array
from tests.table_models import controls, seeded_controls
from torch import Tensor

from mtad.drafting.beams import Draw
from mtad.sampling import Stream
from mtad.structures import RowControls, RowSettings
from mtad.verification import BeamLayer, BeamLayerVerifier
from mtad.verification.beam_layer import dynamic_width

Picks = tuple[int, ...]


def random_laws(seed: int, count: int, zeros: float = 0.0) -> tuple[Array, Array]:
    """Two laws over candidates; `zeros` is the share of impossible ones, a different one in each."""
    generator = np.random.default_rng(seed)
    values = np.exp(1.5 * generator.standard_normal((2, count)))
    impossible = generator.random((2, count)) < zeros
    impossible[:, generator.integers(count)] = False
    values[impossible] = 0.0
    return normalised(values[0]), normalised(values[1])


class Bordered(Script):
    """A script that notes where the random numbers' cells end."""

    def __init__(self, borders: dict[tuple[Stream, int], set[float]], choices: list[int] | None = None) -> None:
        super().__init__(choices or [])
        self.borders = borders

    def choose(self, law: Array, stream: Stream, depth: int, index: int) -> int:
        self.borders[stream, index].update((np.cumsum(law) / law.sum()).tolist())
        return super().choose(law, stream, depth, index)


def borders_of(target: Array, draft: Array, drafted: Picks, rule: Rule) -> list[list[float]]:
    """Where the rule's decision can change: its accepting numbers, then its filling ones."""
    borders: dict[tuple[Stream, int], set[float]] = defaultdict(set)
    script: Script | None = Script()
    while script is not None:
        script = Bordered(borders, script.choices)
        judge_layer(target, draft, drafted, rule, script)
        script = script.next_script()
    streams = (Stream.ACCEPT, Stream.NEXT_TOKEN)
    return [sorted(borders[stream, index]) for stream in streams for index in range(rule.width)]


def verifier(rule: Rule) -> BeamLayerVerifier:
    return BeamLayerVerifier(width=rule.width, draw=rule.draw, acceptance=rule.acceptance)


def accept(
    rule: Rule, laws: tuple[Array, Array], drafted: list[Picks], numbers: Tensor, monkeypatch: pytest.MonkeyPatch
) -> BeamLayer:
    """What the rule does with these drafts, `[rows, width]`, at these numbers, `[rows, 2 * width]`."""
    halves = {Stream.ACCEPT: numbers[:, : rule.width], Stream.NEXT_TOKEN: numbers[:, rule.width :]}

    def given(rows: RowControls, stream: Stream, depth: int, count: int) -> Tensor:
        assert (depth, count) == (1, rule.width)
        return halves[stream]

    padded = [[*picks, *[-1] * (rule.width - len(picks))] for picks in drafted]
    target, draft = (torch.from_numpy(law).expand(len(drafted), -1) for law in laws)
    rows = seeded_controls(RowSettings(), torch.zeros(len(drafted), dtype=torch.int64))
    with monkeypatch.context() as patch:
        patch.setattr("mtad.verification.beam_layer.uniform", given)
        return verifier(rule).accept(target, draft, torch.tensor(padded), rows, 1)


def layer_law(
    rule: Rule, laws: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[Picks, bool], float]:
    """The exact law of what the package's rule keeps, over every draft and every cell of its random numbers."""
    drafts = law_of(lambda chance: tuple(draw_several(laws[1], rule, chance, Stream.DRAFT, 1)))
    owners = list(drafts)
    corners = cells([borders_of(*laws, drafted, rule) for drafted in owners])
    layer = accept(rule, laws, [owners[owner] for owner in corners.owners], corners.points, monkeypatch)
    found: dict[tuple[Picks, bool], float] = defaultdict(float)
    rows = zip(layer.picks.tolist(), layer.is_passed.tolist(), corners.owners, corners.volumes, strict=True)
    for picks, is_passed, owner, volume in rows:
        kept = tuple(pick for pick in picks if pick >= 0)
        found[kept, is_passed] += drafts[owners[owner]] * float(volume)
    return found


def first_picks(law: dict[tuple[Picks, bool], float], count: int) -> dict[Picks, float]:
    shortened: dict[Picks, float] = defaultdict(float)
    for (picks, _), probability in law.items():
        shortened[picks[:count]] += probability
    return shortened


CASES = [(4, 2, 0.0), (4, 2, 0.4), (3, 2, 0.0), (4, 1, 0.0)]


@pytest.mark.parametrize("draw", ["sample", "gumbel"])
@pytest.mark.parametrize(("count", "width", "zeros"), CASES)
def test_a_layer_of_full_width_has_the_law_of_beam_sampling(
    draw: Draw, count: int, width: int, zeros: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Rule(width, draw)
    for seed in range(2):
        laws = random_laws(seed, count, zeros)
        expected = law_of(lambda chance, p=laws[0]: tuple(draw_several(p, rule, chance, Stream.DRAFT, 1)))  # type: ignore[misc]
        found = first_picks(layer_law(rule, laws, monkeypatch), width)
        assert sum(found.values()) == pytest.approx(1, abs=1e-6)
        assert difference(found, expected) < 1e-6


@pytest.mark.parametrize("draw", ["sample", "gumbel"])
def test_above_acceptance_0_the_first_beams_still_have_that_law(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule(2, draw, acceptance=0.9)
    laws = random_laws(1, 4)
    assert width_to_pass(*laws, rule) == 1
    expected = law_of(lambda chance: tuple(draw_several(laws[0], Rule(1, draw), chance, Stream.DRAFT, 1)))
    found = layer_law(rule, laws, monkeypatch)
    assert {len(picks) for picks, is_passed in found if is_passed} == {1}
    assert {len(picks) for picks, is_passed in found if not is_passed} == {2}
    assert difference(first_picks(found, 1), expected) < 1e-6


@pytest.mark.parametrize("draw", ["sample", "gumbel"])
@pytest.mark.parametrize("acceptance", [0.0, 0.6])
def test_the_rule_keeps_what_the_slow_version_keeps(
    draw: Draw, acceptance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Rule(2, draw, acceptance)
    for seed in range(3):
        laws = random_laws(seed, 4, 0.3)

        def run(chance: Chance, laws: tuple[Array, Array] = laws) -> tuple[Picks, bool]:
            layer = judge_layer(*laws, draw_several(laws[1], rule, chance, Stream.DRAFT, 1), rule, chance)
            return layer.picks, layer.is_passed

        assert difference(layer_law(rule, laws, monkeypatch), law_of(run)) < 1e-6


@pytest.mark.parametrize("acceptance", [0.0, 0.5])
def test_the_best_candidates_are_kept_when_they_were_drafted(acceptance: float) -> None:
    target = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    rule = BeamLayerVerifier(width=3, draw="top", acceptance=acceptance)
    cases = {
        (2, 1, 3): ([1, 2, 3], [True] * 3, [True] * 3, True),
        (1, 0, 2): ([1, 2, -1] if acceptance else [1, 2, 3], [True, True, False], [True, False, True], acceptance > 0),
        (3, 0, 2): ([1, 2, 3], [False, True, True], [True, False, True], False),
        (-1, -1, -1): ([1, 2, 3], [False] * 3, [False] * 3, False),
    }
    for drafted, expected in cases.items():
        layer = rule.accept(target, torch.zeros(1, 4), torch.tensor([drafted]), controls(RowSettings()), 1)
        found = (
            layer.picks[0].tolist(),
            layer.from_draft[0].tolist(),
            layer.accepted[0].tolist(),
            bool(layer.is_passed),
        )
        assert found == expected


@pytest.mark.parametrize("draw", ["sample", "gumbel", "top"])
def test_fewer_candidates_than_beams_leave_places_open(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    laws = (np.array([0.0, 0.7, 0.3, 0.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    numbers = torch.full((1, 8), 0.5, dtype=torch.float64)
    layer = accept(Rule(4, draw), laws, [(0, 3)], numbers, monkeypatch)
    assert not layer.is_passed
    picks = layer.picks[0].tolist()
    assert set(picks) <= {1, 2} if draw == "sample" else sorted(picks) == [-1, -1, 1, 2]
    layer = accept(Rule(4, draw), laws, [(1, 2)], torch.full((1, 8), 1e-6).double(), monkeypatch)
    assert bool(layer.is_passed) == (draw != "sample")


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_dynamic_width_is_the_largest_that_drafts_fill(width: int) -> None:
    for seed in range(6):
        laws = random_laws(seed, 4, 0.2)
        counts = drafted_and_accepted(laws, width)
        filled = [sum(odds for count, odds in counts.items() if count >= k) for k in range(1, width + 1)]
        target, draft = (torch.from_numpy(law).unsqueeze(0) for law in laws)
        for odds, change in itertools.product(filled, (-1e-5, 1e-5)):
            acceptance = min(max(odds + change, 1e-9), 1.0)
            expected = max([1, *(k for k, share in enumerate(filled, 1) if share >= acceptance)])
            assert int(dynamic_width(target, draft, width, acceptance)) == expected


def drafted_and_accepted(laws: tuple[Array, Array], width: int) -> dict[int, float]:
    """Law of the number of accepted drafts: every draft, judged as if no width were reached."""
    target, draft = laws
    counts: dict[int, float] = defaultdict(float)
    rule = Rule(width, "sample", acceptance=0.0)

    def run(chance: Chance) -> int:
        drafted = draw_several(draft, rule, chance, Stream.DRAFT, 1)
        return len(judge_layer(target, draft, drafted, rule, chance).places)

    for count, probability in every_outcome(run):
        counts[count] += probability
    assert difference(counts, accepted_law(target, draft, width)) < 1e-12
    return counts


def test_a_draft_equal_to_the_target_fills_the_whole_width() -> None:
    law = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert dynamic_width(law, law, 8, 1.0).tolist() == [8] * 5


def test_rows_are_judged_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    target, draft = torch.randn(2, 6, 12, generator=generator).softmax(-1)
    drafted = torch.randint(12, (6, 3), generator=generator)
    settings = [RowSettings(seed=seed, temperature=seed % 3) for seed in range(6)]
    for draw in ("sample", "gumbel", "top"):
        rule = BeamLayerVerifier(width=3, draw=draw, acceptance=0.3)
        together = rule.accept(target, draft, drafted, controls(*settings), 2)
        for row in range(6):
            one = slice(row, row + 1)
            alone = rule.accept(target[one], draft[one], drafted[one], controls(settings[row]), 2)
            assert alone.picks.tolist() == together.picks[one].tolist()
            assert alone.is_passed.tolist() == together.is_passed[one].tolist()
