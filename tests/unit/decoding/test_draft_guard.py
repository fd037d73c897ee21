"""The guard: never much slower than single-token decoding by a simulated clock, and the method's own text."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tests.enumeration import Probe, block_law, chain_drafts, kept_paths, largest_deviation, random_law
from tests.oracles import Array, Law, Path
from tests.recorded_calls import record_call
from tests.table_models import letters, random_table
from tests.tiny_models import tiny_model
from tests.unit.decoding.test_rolling_batch import finish
from tests.unit.verification.test_block import block_cells
from torch import Tensor

from mtad.config import GenerationOptions
from mtad.decoding import (
    AnswerLimits,
    BatchRoom,
    Machine,
    Request,
    RollingBatch,
    RollingShelf,
    RunFacts,
    build_decoder,
    generate_pieces,
)
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.draft_guard import PROBING_SHARE, DraftGuard, depths_to_choose_from
from mtad.decoding.outcome import RowOutcome
from mtad.drafting import PromptLookupDrafter
from mtad.models.forward import ForwardBatch
from mtad.models.table import TableRunner
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import GenerationResult, RowSettings
from mtad.verification import BlockVerifier

VOCAB = 5
GOOD = random_table(1, VOCAB, 2, scale=3)
BAD = random_table(2, VOCAB, 2, scale=3)


@dataclass
class Clock:
    """Time that goes by when a model is called, and only then."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class TimedRunner(TableRunner):
    """A table model whose calls take their time."""

    def __init__(self, table: Tensor, clock: Clock, seconds: float) -> None:
        super().__init__(table)
        self.clock = clock
        self.seconds = seconds

    def forward(self, batch: ForwardBatch) -> Tensor:
        self.clock.now += self.seconds * (1 + 0.02 * batch.tokens.shape[1])
        return super().forward(batch)


@dataclass
class Simulation:
    """A guarded method whose target takes a second a call."""

    draft: Tensor
    draft_seconds: float
    options: dict[str, Any] = field(default_factory=lambda: {"method": "speculative", "gamma": 3})
    clock: Clock = field(default_factory=Clock)

    def run(self, num_tokens: int) -> list[GenerationResult]:
        """The answer to one prompt."""
        target, draft = TimedRunner(GOOD, self.clock, 1.0), TimedRunner(self.draft, self.clock, self.draft_seconds)
        options = GenerationOptions(guard="on", **self.options)
        decoder = build_decoder(options, target, draft, frozenset(), temperature=1.0, machine=Machine(clock=self.clock))
        facts = RunFacts(method="x", gamma=decoder.gamma)
        pieces = generate_pieces(decoder, [_request(0, [3, 1], num_tokens)], letters, facts)
        return [piece.result for piece in pieces if piece.result is not None]


def _request(row: int, prompt: Sequence[int], count: int, seed: int | None = None, temperature: float = 1.0) -> Request:
    settings = RowSettings(seed=row if seed is None else seed, threshold=0.3, temperature=temperature)
    limits = AnswerLimits(max_new_tokens=count, eos_token_ids=frozenset())
    return Request(row=row, prompt=list(prompt), settings=settings, limits=limits)


WAYS: list[dict[str, Any]] = [
    {"method": "speculative", "gamma": 3},
    {"method": "mmtad", "gamma": 4, "beam_width": 3},
    {"method": "mtad", "gamma": 3, "beam_width": 2},
    {"method": "mmtad", "drafter": "dynamic_tree", "gamma": 3, "beam_width": 2, "node_budget": 5},
    {"method": "speculative", "verifier": "traversal", "drafter": "branching_tree", "branching": "2,2"},
]


@dataclass
class Play:
    """A guard over rows whose drafts are kept level by level with some odds, by a clock of its own.

    Attributes:
        rates: Odds of every level, for each row.
        level_seconds: What a drafted level adds to a plain step of one second.
        marks: Tokens of an average row and time, after every iteration.
    """

    rates: list[float]
    level_seconds: float
    depths: tuple[int, ...] = (0, 1, 2, 4)
    marks: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])
    used: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.guard = DraftGuard(self.depths, Clock())
        self.guard.start(len(self.rates))
        self.chance = np.random.default_rng(0)

    def run(self, num_tokens: int, noise: float = 0.05) -> float:
        """Go on for so many tokens; returns the seconds of a token."""
        first, last = self.marks[-1], self.marks[-1]
        while last[0] < first[0] + num_tokens:
            depth = self.guard.depth
            kept = [int((self.chance.random(depth) < rate).cumprod().sum()) for rate in self.rates]
            seconds = (1 + self.level_seconds * depth) * (1 + noise * self.chance.random())
            last = last[0] + 1 + sum(kept) / len(kept), last[1] + seconds
            self.marks.append(last)
            self.used.append(depth)
            self.guard.hear_time(depth, seconds)
            self.guard.note([_kept(count, depth) for count in kept])
        return (last[1] - first[1]) / (last[0] - first[0])


PLAIN = 1.025
"""Seconds of a plain step, the noise included."""


@pytest.mark.parametrize("depths", [(0, 1, 2, 4), (0, 4), (0, 1)], ids=str)
@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize(("rate", "level_seconds"), [(0.0, 0.05), (0.0, 0.5), (0.05, 3.0), (1.0, 1.3), (0.5, 0.6)])
def test_a_draft_that_does_not_pay_costs_the_probing_alone(
    rate: float, level_seconds: float, num_rows: int, depths: tuple[int, ...]
) -> None:
    play = Play([rate] * num_rows, level_seconds, depths)
    play.run(100)
    assert play.run(3000) < PLAIN * (1 + 2 * PROBING_SHARE)
    # Before the first decision come a trial, two steps of a plain shape, and a little evidence.
    beginning = next(mark for mark in play.marks if mark[0] >= 100)
    assert beginning[1] < 1.06 * PLAIN * beginning[0] + 12 * level_seconds * depths[-1]


@pytest.mark.parametrize("rate", [0.7, 0.95])
def test_a_good_draft_stays_at_its_full_depth(rate: float) -> None:
    play = Play([rate], 0.1)
    unguarded = PLAIN * (1 + 0.1 * 4) / sum(rate**level for level in range(5))
    assert play.run(5000) < 1.04 * unguarded
    assert play.used.count(4) > 0.93 * len(play.used)


def test_later_answers_are_never_much_slower_than_single_tokens_however_short() -> None:
    play = Play([0.0], 0.6)
    play.run(40)
    seconds = []
    for _ in range(60):
        play.guard.start(1)
        seconds.append(play.run(40))
    assert sum(seconds) / len(seconds) < PLAIN * (1 + 2 * PROBING_SHARE)
    assert sorted(seconds)[len(seconds) // 2] < 1.01 * PLAIN, "most answers try nothing"
    assert 4 in play.used[-1500:], "yet the draft is tried again"


def test_a_draft_that_later_answers_agree_with_comes_back() -> None:
    play = Play([0.0], 0.2)
    play.run(40)
    play.rates = [0.9]
    for _ in range(20):
        play.guard.start(1)
        play.run(40)
    assert play.used[-50:].count(4) > 45


def test_an_answer_that_ends_while_a_plain_step_is_measured_leaves_that_to_the_next() -> None:
    play = Play([0.0], 0.6)
    while play.guard.depth:
        play.run(1)
    play.guard.start(1)
    play.run(20)
    assert play.used[-10:] == [0] * 10


def test_a_few_refusals_do_not_end_a_draft_that_earlier_answers_agreed_with() -> None:
    play = Play([0.9], 0.2)
    play.run(200)
    play.guard.start(1)
    for _ in range(3):
        assert play.guard.depth == 4
        _tell(play.guard, [0], 1.8)
    assert play.guard.depth == 4


def test_a_draft_that_turns_bad_is_left_out_and_comes_back_when_it_is_good_again() -> None:
    play = Play([0.9], 0.3)
    good = play.run(1000)
    assert good < 0.65
    play.rates = [0.0]
    play.run(60)
    assert play.run(1000) < PLAIN * (1 + 2 * PROBING_SHARE)
    play.rates = [0.9]
    play.run(150)
    assert play.run(1000) < 1.1 * good


def test_a_draft_that_becomes_dear_is_left_out() -> None:
    play = Play([0.6], 0.1)
    assert play.run(500) < 0.8
    play.level_seconds = 2.0
    play.run(60)
    assert play.run(1000) < PLAIN * (1 + 2 * PROBING_SHARE)


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_a_run_is_as_fast_as_single_tokens_where_its_draft_is_as_dear_as_the_target(way: dict[str, Any]) -> None:
    simulation = Simulation(GOOD, 2.0, way)
    (result,) = simulation.run(150)
    # A call of one token takes 1.02 seconds; the trial comes on top.
    assert simulation.clock.now < 1.02 * 150 * (1 + 2 * PROBING_SHARE) + 4 * 2.0 * 4
    assert result.stats.undrafted_calls > 100
    assert result.stats.undrafted_calls + result.stats.shortened_calls <= result.stats.target_calls


def test_a_draft_may_be_shortened_instead_of_left_out() -> None:
    guard = DraftGuard((0, 1, 2, 4), Clock())
    guard.start(1)
    for _ in range(200):
        # The first token is always kept, the others never; a level costs as much as a quarter of a plain step.
        _tell(guard, [min(guard.depth, 1)], 1 + 0.25 * guard.depth)
    assert guard.depth == 1


def _tell(guard: DraftGuard, kept: Sequence[int | None], seconds: float | None) -> None:
    guard.hear_time(guard.depth, seconds)
    guard.note([None if count is None else _kept(count, guard.depth) for count in kept])


def _kept(count: int, depth: int) -> RowOutcome:
    kept = min(count, depth)
    return RowOutcome(
        tokens=[0] * (kept + 1), num_drafted=kept, log_probs=[0.0] * (kept + 1), joint_log_ratio=0.0, target_calls=1
    )


def test_one_row_with_a_good_draft_keeps_it_on_for_the_batch_until_it_leaves() -> None:
    guard = DraftGuard((0, 1, 2, 3), Clock())
    guard.start(2)
    for _ in range(100):
        _tell(guard, [0, 3], 1 + 0.2 * guard.depth)
    assert guard.depth == 3
    guard.select_rows([0])
    depths = []
    for _ in range(100):
        _tell(guard, [0], 1 + 0.2 * guard.depth)
        depths.append(guard.depth)
    assert depths[0] == 0, "what the row kept so far is remembered"
    assert depths.count(0) > 90


def test_idle_rows_have_no_say() -> None:
    guard = DraftGuard((0, 3), Clock())
    guard.start(2)
    for _ in range(100):
        _tell(guard, [0, 3], 1 + 0.2 * guard.depth)
    for _ in range(20):
        _tell(guard, [0, None], 1 + 0.2 * guard.depth)
    assert guard.depth == 0


def test_rows_that_join_begin_with_what_the_others_kept() -> None:
    guard = DraftGuard((0, 3), Clock())
    guard.start(1)
    for _ in range(40):
        _tell(guard, [0], 1 + 0.4 * guard.depth)
    guard.add_rows(3)
    guard.select_rows([0, 1, 2, 3])
    depths = []
    for _ in range(20):
        _tell(guard, [0] * 4, 1 + 0.4 * guard.depth)
        depths.append(guard.depth)
    assert depths.count(0) >= 16


@pytest.mark.parametrize("seconds", [0.0, None])
def test_without_a_measurement_nothing_is_changed(seconds: float | None) -> None:
    guard = DraftGuard((0, 3), Clock())
    guard.start(1)
    for _ in range(300):
        _tell(guard, [0], seconds)
        assert guard.depth == 3


def test_a_plain_step_that_cannot_be_measured_does_not_keep_the_draft_out() -> None:
    guard = DraftGuard((0, 3), Clock())
    guard.start(1)
    depths = []
    for _ in range(60):
        depths.append(guard.depth)
        _tell(guard, [3], None if guard.depth == 0 else 1.0)
    assert 0 < depths.count(0) < 30


def test_depths_are_few() -> None:
    assert depths_to_choose_from(3, shrinks=True) == (0, 1, 2, 3)
    assert depths_to_choose_from(10, shrinks=True) == (0, 1, 2, 4, 8, 10)
    assert depths_to_choose_from(1, shrinks=True) == (0, 1)
    assert depths_to_choose_from(10, shrinks=False) == (0, 10)


class Scheduled(DraftGuard):
    """Depths by a plan instead of by figures."""

    def __init__(self, gamma: int, plan: Sequence[int]) -> None:
        super().__init__((0, gamma), Clock())
        self.plan = [min(depth, gamma) for depth in plan]
        self.depth = self.plan[0]
        self.heard: list[int] = []

    def start(self, num_rows: int) -> None:
        super().start(num_rows)
        self.heard, self.depth = [], self.plan[0]

    def hear_time(self, depth: int, seconds: float | None) -> None:
        self.heard.append(depth)

    def note(self, outcomes: Sequence[RowOutcome | None]) -> None:
        self.depth = self.plan[len(self.heard) % len(self.plan)]


PLAN = [9, 0, 0, 9, 9, 0, 1, 0, 0, 0, 0, 2]
LAGGING: list[dict[str, Any]] = [
    *WAYS,
    {"method": "mmtad", "drafter": "prompt_lookup", "gamma": 3},
    {"method": "mmtad", "drafter": "early_exit", "gamma": 2, "beam_width": 2, "exit_layers": 1},
]


def _runner(seed: int) -> TransformersRunner:
    runner = TransformersRunner(tiny_model(seed=seed))
    runner.attach()
    return runner


@pytest.fixture(scope="module")
def pair() -> tuple[TransformersRunner, TransformersRunner]:
    return _runner(0), _runner(0)


def _scheduled(built: Any, plan: Sequence[int], **changes: Any) -> AssistedDecoder:
    guard = Scheduled(built.gamma, plan)
    return AssistedDecoder(built.target, built.drafter, built.verifier, built.policies, guard=guard, **changes)


PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 8, 9], [14]]


@pytest.mark.parametrize("way", LAGGING, ids=str)
def test_every_iteration_is_the_method_s_own_after_the_same_text(
    pair: tuple[TransformersRunner, TransformersRunner], way: dict[str, Any]
) -> None:
    built = build_decoder(GenerationOptions(**way), *pair, frozenset(), temperature=1.0)
    assert sum(_check_iterations(built, plan, is_captured=False) for plan in (PLAN, [0, 0, *PLAN])) >= 2


@pytest.mark.parametrize("way", [LAGGING[0], LAGGING[1], LAGGING[5]], ids=str)
def test_captured_iterations_take_turns_with_plain_ones(
    pair: tuple[TransformersRunner, TransformersRunner], way: dict[str, Any]
) -> None:
    built = build_decoder(GenerationOptions(**way), *pair, frozenset(), temperature=1.0)
    assert sum(_check_iterations(built, plan, is_captured=True) for plan in (PLAN, [0, *PLAN])) >= 2


def _check_iterations(built: Any, plan: Sequence[int], *, is_captured: bool) -> int:
    """Each iteration is the first one of a fresh decoder, with the same depth, after the text so far.

    Returns the number of drafted tokens that were kept.
    """
    decoder = _scheduled(built, plan, capture=record_call if is_captured else None)
    # Greedy text repeats itself, which is what can be looked up.
    temperature = 0.0 if isinstance(built.drafter, PromptLookupDrafter) else 1.0
    requests = [_request(row, prompt, 30, temperature=temperature) for row, prompt in enumerate(PROMPTS)]
    seen: list[list[tuple[list[int], list[int]]]] = [[] for _ in requests]
    texts = [list(item.prompt) for item in requests]
    for piece in generate_pieces(decoder, requests, letters, RunFacts(method="x", gamma=decoder.gamma)):
        seen[piece.row].append((list(texts[piece.row]), list(piece.token_ids)))
        texts[piece.row] += piece.token_ids
    guard = decoder.guard
    assert isinstance(guard, Scheduled)
    assert set(guard.heard) >= {0, built.gamma}
    assert decoder.loop is None or decoder.loop.num_captures >= 2
    depths, num_kept = list(guard.heard), 0
    for row, steps in enumerate(seen):
        for (text, tokens), depth in list(zip(steps, depths, strict=False))[:-1]:
            if not depth:
                continue
            fresh = _scheduled(built, [depth])
            fresh.prefill([text], [requests[row].settings], [8])
            (outcome,) = fresh.step([True])
            assert outcome is not None
            assert outcome.tokens == tokens
            num_kept += outcome.num_drafted
    return num_kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], LAGGING[5]], ids=str)
def test_rows_come_and_go_while_the_draft_does(way: dict[str, Any], seed: int) -> None:
    clock = Clock()
    # A table model refuses to score a text of which its cache lacks a token.
    target, draft = TimedRunner(GOOD, clock, 1.0), TimedRunner(BAD if seed else GOOD, clock, 0.5)
    room = BatchRoom(max_rows=3, max_tokens=120, prefill_chunk=16)
    shelf = RollingShelf(target, draft, room, machine=Machine(clock=clock))
    rolling = RollingBatch(shelf, room, letters)
    chance = np.random.default_rng(seed)
    results: dict[int, GenerationResult] = {}
    shared = [int(token) for token in chance.integers(VOCAB, size=20)]
    for ticket in range(9):
        prompt = [*shared, *(int(token) for token in chance.integers(VOCAB, size=int(chance.integers(1, 6))))]
        options = GenerationOptions(guard="on" if ticket % 4 else "off", **way)
        rolling.submit(_request(ticket, prompt, int(chance.integers(10, 50))), options, config={})
        for _ in range(int(chance.integers(12))):
            results.update({piece.row: piece.result for piece in rolling.step() if piece.result})
    results.update(finish(rolling)[0])
    assert len(results) == 9
    assert all(len(result.token_ids) >= 10 for result in results.values())
    guarded = [result.stats for ticket, result in results.items() if ticket % 4]
    has_model = way.get("drafter") != "prompt_lookup"
    assert sum(stats.undrafted_calls + stats.shortened_calls for stats in guarded) > (50 if seed and has_model else 0)
    assert all(results[ticket].stats.undrafted_calls == 0 for ticket in results if ticket % 4 == 0)


def test_rows_with_a_seed_are_not_disturbed_by_guarded_ones() -> None:
    answers = []
    for company in (0, 6):
        clock = Clock()
        room = BatchRoom(max_rows=8, max_tokens=120, prefill_chunk=64)
        runners = TimedRunner(GOOD, clock, 1.0), TimedRunner(BAD, clock, 2.0)
        rolling = RollingBatch(RollingShelf(*runners, room, machine=Machine(clock=clock)), room, letters)
        for ticket in range(company):
            rolling.submit(_request(ticket, [1, 2], 60), GenerationOptions(guard="on", gamma=2), config={})
        options = GenerationOptions(guard="off", gamma=2)
        rolling.submit(_request(company, [3, 1], 60, seed=11), options, config={})
        answers.append(finish(rolling)[0][company])
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].accepted_lengths == answers[1].accepted_lengths


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    return Probe(monkeypatch, BlockVerifier(), "mtad.verification.block")


def _after(law: Law, text: Path) -> Law:
    return lambda path: law((*text, *path))


@dataclass
class _Process:
    """The law of the first tokens of a whole answer, iteration by iteration, every draw enumerated."""

    probe: Probe
    target: Law
    draft: Law
    num_tokens: int
    choose: Callable[[int, int], int]
    peeks: bool = False

    def law(self) -> dict[Path, float]:
        found: dict[Path, float] = defaultdict(float)
        self._go_on((), 2, 1.0, found)
        return found

    def _go_on(self, text: Path, depth: int, weight: float, found: dict[Path, float]) -> None:
        if len(text) >= self.num_tokens:
            found[text[: self.num_tokens]] += weight
            return
        for kept, following in self._iteration(text, depth).items():
            for token, probability in enumerate(following):
                if probability > 0:
                    nearer = self.choose(len(kept), depth)
                    self._go_on((*text, *kept, token), nearer, weight * float(probability), found)

    def _iteration(self, text: Path, depth: int) -> dict[Path, Array]:
        """Probability of every kept path and token after it."""
        if depth == 0:
            return {(): np.exp(self.target(text))}
        target, draft = _after(self.target, text), _after(self.draft, text)
        drafts = chain_drafts(target, draft, 2, depth)
        outcomes: dict[Path, Array] = defaultdict(lambda: np.zeros(2))
        corners = block_cells(target, draft, [tuple(path) for path in drafts.tree.tokens.tolist()])
        asked = drafts.take(corners.owners)
        acceptance, following = self.probe.ask(asked, {0: corners.points})
        weights = asked.weights * corners.volumes
        paths = kept_paths(asked.tree, acceptance)
        for row, first in enumerate(asked.tree.tokens[:, 0].tolist()):
            if self.peeks and first == 0:
                outcomes[()] = outcomes[()] + weights[row] * np.exp(target(()))
            else:
                outcomes[paths[row]] = outcomes[paths[row]] + weights[row] * following[row]
        return outcomes


@pytest.mark.parametrize("seed", range(3))
def test_a_depth_chosen_by_the_past_leaves_the_law_of_a_lossless_rule(seed: int, probe: Probe) -> None:
    target, draft = random_law(seed, 2), random_law(seed + 50, 2)
    chosen = {(0, 2): 0, (1, 2): 1, (2, 2): 2, (0, 1): 0, (1, 1): 2, (0, 0): 2}
    process = _Process(probe, target, draft, 4, lambda kept, depth: chosen[kept, depth])
    assert largest_deviation(block_law(target, 2, 4), process.law()) < 1e-8
    # A draft that is thrown away for what it says would not.
    process.peeks = True
    assert largest_deviation(block_law(target, 2, 4), process.law()) > 1e-3
