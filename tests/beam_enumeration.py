"""A slow version of speculative beam sampling, run over every outcome of chance or with given numbers."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from tests.oracles import Array, Beam, Law, Path

from mtad.drafting.beams import Draw
from mtad.sampling import Stream, uniform
from mtad.structures import RowControls

State = tuple[Path, ...]
"""The texts of the beams of one layer, in the order they were drawn."""


class Chance(Protocol):
    """Where random choices come from."""

    def choose(self, law: Array, stream: Stream, depth: int, index: int) -> int:
        """A category of a law that need not be normalised."""
        ...


class Given:
    """Inverts the uniform numbers of one row."""

    def __init__(self, row: RowControls) -> None:
        self._row = row

    def choose(self, law: Array, stream: Stream, depth: int, index: int) -> int:
        cumulative = np.cumsum(law) / law.sum()
        return int(np.argmax(cumulative > float(uniform(self._row, stream, depth, index + 1)[0, index])))


class Script:
    """Replays choices and goes on with the first possible ones; `next_script` changes the last that can change."""

    def __init__(self, choices: Sequence[int] = ()) -> None:
        self.choices = list(choices)
        self.probability = 1.0
        self._laws: list[Array] = []

    def choose(self, law: Array, stream: Stream, depth: int, index: int) -> int:
        normalised = law / law.sum()
        place = len(self._laws)
        self._laws.append(normalised)
        if place == len(self.choices):
            self.choices.append(int(np.flatnonzero(normalised)[0]))
        self.probability *= float(normalised[self.choices[place]])
        return self.choices[place]

    def next_script(self) -> "Script | None":
        for place in reversed(range(len(self.choices))):
            later = np.flatnonzero(self._laws[place][self.choices[place] + 1 :])
            if len(later):
                return Script([*self.choices[:place], self.choices[place] + 1 + int(later[0])])
        return None


def every_outcome(run: Callable[[Chance], Any]) -> Iterator[tuple[Any, float]]:
    """What `run` returns for every sequence of choices, with its probability."""
    script: Script | None = Script()
    while script is not None:
        result = run(script)
        yield result, script.probability
        script = script.next_script()


def law_of(run: Callable[[Chance], Any]) -> dict[Any, float]:
    """The exact law of what `run` returns."""
    law: dict[Any, float] = defaultdict(float)
    for result, probability in every_outcome(run):
        law[result] += probability
    return law


def difference(law: dict[Any, float], other: dict[Any, float]) -> float:
    """Largest difference of two laws."""
    return max(abs(law.get(key, 0.0) - other.get(key, 0.0)) for key in {*law, *other})


@dataclass(frozen=True)
class Rule:
    """Width, draw and acceptance of the rule under test."""

    width: int
    draw: Draw
    acceptance: float = 0.0


@dataclass(frozen=True)
class SlowLayer:
    """What `judge_layer` keeps: candidates, the places of accepted drafts, and whether the layer is passed."""

    picks: tuple[int, ...]
    places: tuple[int, ...]
    is_passed: bool


def draw_several(law: Array, rule: Rule, chance: Chance, stream: Stream, depth: int, first: int = 0) -> list[int]:
    """Candidates of one layer from number `first` on; fewer when a draw without replacement exhausts them."""
    if rule.draw == "top":
        best = np.argsort(-law, kind="stable")[: rule.width]
        return [int(index) for index in best if law[index] > 0]
    law, drawn = law.copy(), []
    for index in range(first, rule.width):
        if law.sum() <= 0:
            break
        drawn.append(chance.choose(law, stream, depth, index))
        if rule.draw == "gumbel":
            law[drawn[-1]] = 0.0
    return drawn


def normalised(law: Array) -> Array:
    total = law.sum()
    result: Array = law / total if total > 0 else law
    return result


def without(law: Array, index: int) -> Array:
    rest = law.copy()
    rest[index] = 0.0
    return normalised(rest)


def residual(target: Array, draft: Array) -> Array:
    rest = np.maximum(target - draft, 0.0)
    return normalised(rest) if rest.sum() > 1e-14 else target


def accepted_law(target: Array, draft: Array, num_drafts: int) -> dict[int, float]:
    """Law of how many of some independent drafts are accepted, each accepted or rejected in turn."""
    law: dict[int, float] = defaultdict(float)

    def judge(left: Array, remaining: int, count: int, probability: float) -> None:
        if remaining == 0:
            law[count] += probability
            return
        odds = float(np.minimum(left, draft).sum())
        judge(target, remaining - 1, count + 1, probability * odds)
        judge(residual(left, draft), remaining - 1, count, probability * (1 - odds))

    judge(target, num_drafts, 0, 1.0)
    return law


def width_to_pass(target: Array, draft: Array, rule: Rule) -> int:
    """M of the paper, and never more than there are candidates to draw without replacement."""
    width = rule.width
    if rule.acceptance > 0:
        counts = accepted_law(target, draft, rule.width)
        at_least = [sum(odds for count, odds in counts.items() if count >= k) for k in range(1, rule.width + 1)]
        width = max(1, sum(odds >= rule.acceptance - 1e-6 for odds in at_least))
    return width if rule.draw == "sample" else min(width, int((target > 0).sum()))


def judge_layer(
    target: Array, draft: Array, drafted: Sequence[int], rule: Rule, chance: Chance, depth: int = 1
) -> SlowLayer:
    """One layer as `BeamLayerVerifier` describes it."""
    if rule.draw == "top":
        return judge_best(target, drafted, rule)
    wanted = width_to_pass(target, draft, rule)
    fresh = left = target
    places: list[int] = []
    for place, y in enumerate(drafted):
        if len(places) == wanted:
            break
        odds = min(1.0, left[y] / draft[y])
        is_kept = chance.choose(np.array([odds, 1 - odds]), Stream.ACCEPT, depth, place) == 0
        rest = residual(left, draft)
        if rule.draw == "gumbel":
            draft = without(draft, y)
            fresh = without(fresh, y) if is_kept else fresh
        left = fresh if is_kept else rest
        places += [place] if is_kept else []
    picks = [drafted[place] for place in places]
    if len(picks) >= wanted:
        return SlowLayer(tuple(picks), tuple(places), is_passed=True)
    first = chance.choose(left, Stream.NEXT_TOKEN, depth, 0)
    fresh = without(fresh, first) if rule.draw == "gumbel" else fresh
    open_places = rule.width - len(picks)
    fills = [first, *draw_several(fresh, replace(rule, width=open_places), chance, Stream.NEXT_TOKEN, depth, 1)]
    return SlowLayer((*picks, *fills), tuple(places), is_passed=False)


def judge_best(target: Array, drafted: Sequence[int], rule: Rule) -> SlowLayer:
    best = [int(index) for index in np.argsort(-target, kind="stable")[: rule.width] if target[index] > 0]
    leading = next((rank for rank, index in enumerate(best) if index not in drafted), len(best))
    if leading < (len(best) if rule.acceptance == 0 else 1):
        return SlowLayer(tuple(best), (), is_passed=False)
    places = tuple(place for place, index in enumerate(drafted) if index in best[:leading])
    return SlowLayer(tuple(best[:leading]), places, is_passed=True)


def candidate_law(beams: Sequence[Beam], law: Law, vocab: int) -> Array:
    """The law of beam sampling over candidates beam * vocab + token."""
    values = np.zeros((len(beams), vocab))
    for row, beam in zip(values, beams, strict=True):
        if beam.is_finished:
            row[beam.path[-1]] = beam.weight
        elif beam.weight > 0:
            row[:] = beam.weight * np.exp(law(beam.path))
    return normalised(values.ravel())


def take(beams: Sequence[Beam], picks: Sequence[int], laws: tuple[Array, Law], eos: frozenset[int]) -> list[Beam]:
    """The beams that candidates make, weights divided by their sum."""
    weights, law = laws
    vocab = len(weights) // len(beams)
    taken = []
    for pick in picks:
        above, token = beams[pick // vocab], pick % vocab
        step = 0.0 if above.is_finished else float(law(above.path)[token])
        is_finished = above.is_finished or token in eos
        taken.append(
            Beam((*above.path, token), above.joint + step, weights[pick], is_finished, is_carried=above.is_finished)
        )
    total = sum(beam.weight for beam in taken)
    return [replace(beam, weight=beam.weight / total if total > 0 else 0.0) for beam in taken]


@dataclass(frozen=True)
class Pair:
    """Two models and what ends a beam."""

    target: Law
    draft: Law
    vocab: int
    eos: frozenset[int] = frozenset()


def drawing_order(law: Array, num_beams: int) -> list[int]:
    """Candidates by beam, then from likely to unlikely."""
    by_beam = np.argsort(-law.reshape(num_beams, -1), axis=1, kind="stable")
    return [int(index) for index in (by_beam + np.arange(num_beams)[:, None] * by_beam.shape[1]).ravel()]


def draft_layer(beams: Sequence[Beam], pair: Pair, rule: Rule, chance: Chance, depth: int) -> tuple[Array, list[int]]:
    """The draft's law over candidates and the drafted ones."""
    law = candidate_law(beams, pair.draft, pair.vocab)
    order = drawing_order(law, len(beams))
    return law, [order[index] for index in draw_several(law[order], rule, chance, Stream.DRAFT, depth)]


def iterate(
    beams: Sequence[Beam], pair: Pair, rule: Rule, gamma: int, chance: Chance, room: int = 99
) -> tuple[list[Beam], int, int]:
    """One iteration: the new beams, how many layers they are below the old ones, and how many were passed."""
    drafts, above = [], list(beams)
    for depth in range(1, gamma + 1):
        law, drafted = draft_layer(above, pair, rule, chance, depth)
        above = take(above, drafted, (law, pair.draft), pair.eos)
        drafts.append((law, drafted))
    front = list(beams)
    for depth in range(1, gamma + 2):
        weights = candidate_law(front, pair.target, pair.vocab)
        law, drafted = drafts[depth - 1] if depth <= gamma else (np.zeros_like(weights), [])
        order = drawing_order(weights, len(front))
        places = [order.index(candidate) for candidate in drafted]
        layer = judge_layer(weights[order], law[order], places, rule, chance, depth)
        found = take(front, [order[pick] for pick in layer.picks], (weights, pair.target), pair.eos)
        best = max(found, key=lambda beam: beam.joint)
        if not layer.is_passed or best.is_finished or depth >= room:
            break
        kept = [drafted[place] for place in layer.places]
        accepted = iter(take(front, kept, (weights, pair.target), pair.eos))
        # Rejected drafts stay where they are, with weight 0, because later drafts may hang under them.
        dead = take(front, drafted, (weights, pair.target), pair.eos)
        front = [
            next(accepted) if place in layer.places else replace(beam, weight=0.0) for place, beam in enumerate(dead)
        ]
    return found, depth, depth - 1 + layer.is_passed


def beam_sampling(
    beams: Sequence[Beam], pair: Pair, rule: Rule, num_layers: int, chance: Chance, first: int = 1
) -> list[Beam]:
    """Plain beam sampling with the target."""
    for depth in range(first, first + num_layers):
        law = candidate_law(beams, pair.target, pair.vocab)
        picks = draw_several(law, rule, chance, Stream.DRAFT, depth)
        beams = take(beams, picks, (law, pair.target), pair.eos)
    return list(beams)


def texts(beams: Sequence[Beam]) -> State:
    return tuple(beam.path for beam in beams)
