"""Whole iterations replayed from a record give the answers of iterations run one by one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.recorded_calls import HostReadError, record_call
from tests.tiny_models import EOS, tiny_model

from mtad.config import DRAFTER_NAMES, VERIFIER_NAMES, GenerationOptions
from mtad.decoding import AnswerLimits, Request, RunFacts, build_decoder, generate_pieces, resolve_pair
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.outcome import RowOutcome
from mtad.errors import ConfigError
from mtad.models.graphs import ReplayLoop
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import GenerationResult, RowControls, RowSettings

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]


def _fits(drafter: str, verifier: str) -> bool:
    try:
        resolve_pair(GenerationOptions(drafter=drafter, verifier=verifier))
    except ConfigError:
        return False
    return True


PAIRS = [(drafter, rule) for drafter in DRAFTER_NAMES for rule in VERIFIER_NAMES if _fits(drafter, rule)]


def _runner(seed: int) -> TransformersRunner:
    runner = TransformersRunner(tiny_model(seed=seed, dtype=torch.float32))
    runner.attach()
    return runner


@pytest.fixture(scope="module")
def pair() -> tuple[TransformersRunner, TransformersRunner]:
    return _runner(0), _runner(1)


def _decoder(
    pair: tuple[TransformersRunner, TransformersRunner], options: GenerationOptions, temperature: float, captured: bool
) -> AssistedDecoder:
    built = build_decoder(options, *pair, frozenset({EOS}), temperature=temperature)
    assert isinstance(built, AssistedDecoder)
    if not captured:
        return built
    return AssistedDecoder(built.target, built.drafter, built.verifier, capture=record_call)


def _decode(
    decoder: AssistedDecoder,
    temperature: float,
    counts: tuple[int, ...] = (7, 19, 12),
    *,
    top_k: int = 8,
    top_p: float = 0.9,
    seed: int = 0,
) -> list[GenerationResult]:
    settings = RowSettings(temperature=temperature, top_k=top_k, top_p=top_p, threshold=0.3)
    requests = [
        Request(
            row=row,
            prompt=prompt,
            settings=replace(settings, seed=10 * seed + row),
            limits=AnswerLimits(max_new_tokens=count, eos_token_ids=frozenset()),
        )
        for row, (prompt, count) in enumerate(zip(PROMPTS, counts, strict=False))
    ]
    pieces = generate_pieces(decoder, requests, lambda token_ids: " ".join(map(str, token_ids)), RunFacts(method="x"))
    return sorted((piece.result for piece in pieces if piece.result), key=lambda result: result.stats.num_prompt_tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("drafter", "verifier"), PAIRS, ids=lambda name: name)
def test_replayed_iterations_give_the_same_answers(
    pair: tuple[TransformersRunner, TransformersRunner], drafter: str, verifier: str, temperature: float
) -> None:
    options = GenerationOptions(
        drafter=drafter, verifier=verifier, gamma=2, beam_width=2, branching="2,2", node_budget=4, exit_layers=None
    )
    eager = _decode(_decoder(pair, options, temperature, captured=False), temperature)
    decoder = _decoder(pair, options, temperature, captured=True)
    replayed = _decode(decoder, temperature)
    assert decoder.loop is not None
    assert decoder.loop.refusal is None
    assert decoder.loop.num_captures >= 2, "rows that leave make another shape"
    assert [result.token_ids for result in replayed] == [result.token_ids for result in eager]
    for ours, theirs in zip(replayed, eager, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
        assert ours.accepted_lengths == theirs.accepted_lengths


def test_rows_that_leave_make_few_shapes(pair: tuple[TransformersRunner, TransformersRunner]) -> None:
    options = GenerationOptions(gamma=2, beam_width=2)
    limits = [30, 26, 22, 4, 12, 4]
    answers: list[dict[int, tuple[int, ...]]] = []
    sizes: set[int] = set()
    for captured in (False, True):
        decoder = _decoder(pair, options, 1.0, captured=captured)
        requests = [
            Request(
                row=row,
                prompt=PROMPTS[row % 3],
                settings=RowSettings(seed=row, top_k=8, threshold=0.3),
                limits=AnswerLimits(max_new_tokens=limit, eos_token_ids=frozenset()),
            )
            for row, limit in enumerate(limits)
        ]
        found: dict[int, tuple[int, ...]] = {}
        for piece in generate_pieces(decoder, requests, str, RunFacts(method="x")):
            if captured:
                sizes.add(len(decoder.row_ids))
            if piece.result is not None:
                assert piece.row not in found
                found[piece.row] = piece.result.token_ids
        answers.append(found)
    assert answers[0] == answers[1]
    assert len(answers[0]) == len(limits)
    assert sizes >= {6, 4}
    assert sizes <= {6, 4, 2, 1}


def test_unfiltered_rows_are_replayed_too(pair: tuple[TransformersRunner, TransformersRunner]) -> None:
    options = GenerationOptions(gamma=3, beam_width=2, draw="gumbel")
    answers = [
        _decode(_decoder(pair, options, 1.0, captured=captured), 1.0, top_k=0, top_p=1.0) for captured in (False, True)
    ]
    assert [result.token_ids for result in answers[0]] == [result.token_ids for result in answers[1]]


@pytest.mark.parametrize("drafter", ["beam_tree", "prompt_lookup", "chain"])
def test_a_batch_of_the_same_shape_replays_what_was_captured(
    pair: tuple[TransformersRunner, TransformersRunner], drafter: str
) -> None:
    options = GenerationOptions(gamma=2, beam_width=2, drafter=drafter, verifier="joint")
    decoder = _decoder(pair, options, 1.0, captured=True)
    assert decoder.loop is not None
    for seed in range(3):
        replayed = _decode(decoder, 1.0, counts=(12,), seed=seed)
        eager = _decode(_decoder(pair, options, 1.0, captured=False), 1.0, counts=(12,), seed=seed)
        assert [result.token_ids for result in replayed] == [result.token_ids for result in eager]
    assert decoder.loop.num_captures == 1


def test_other_filters_are_captured_anew(pair: tuple[TransformersRunner, TransformersRunner]) -> None:
    options = GenerationOptions(gamma=2, beam_width=2)
    decoder = _decoder(pair, options, 1.0, captured=True)
    _decode(decoder, 1.0)
    replayed = _decode(decoder, 1.0, top_k=3, top_p=1.0)
    eager = _decode(_decoder(pair, options, 1.0, captured=False), 1.0, top_k=3, top_p=1.0)
    assert [result.token_ids for result in replayed] == [result.token_ids for result in eager]


def test_decoders_that_take_turns_do_not_disturb_each_other(
    pair: tuple[TransformersRunner, TransformersRunner],
) -> None:
    shapes = [GenerationOptions(gamma=2, beam_width=2), GenerationOptions(method="speculative", gamma=3)]
    decoders = [_decoder(pair, options, 1.0, captured=True) for options in shapes]
    for seed in range(4):
        for decoder, options in zip(decoders, shapes, strict=True):
            replayed = _decode(decoder, 1.0, counts=(9, 9, 9), seed=seed)
            eager = _decode(_decoder(pair, options, 1.0, captured=False), 1.0, counts=(9, 9, 9), seed=seed)
            assert [result.token_ids for result in replayed] == [result.token_ids for result in eager]


def test_what_takes_part_on_the_host_is_not_replayed(pair: tuple[TransformersRunner, TransformersRunner]) -> None:
    options = GenerationOptions(gamma=2, beam_width=2, draft_length="adaptive")
    built = build_decoder(options, *pair, frozenset({EOS}), temperature=1.0)
    assert isinstance(built, AssistedDecoder)
    decoder = AssistedDecoder(built.target, built.drafter, built.verifier, built.policies, capture=record_call)
    _decode(decoder, 1.0)
    assert decoder.loop is not None
    assert decoder.loop.num_captures == 0


class _Meddler:
    """A policy that limits drafts in some iterations and leaves the others alone."""

    def __init__(self) -> None:
        self.num_noted = 0

    @property
    def needs_host(self) -> bool:
        return self.num_noted % 5 == 3

    def start(self, num_rows: int) -> None:
        self.num_noted = 0

    def add_rows(self, count: int) -> None:
        pass

    def apply(self, rows: RowControls) -> RowControls:
        return rows

    def note(self, outcomes: Sequence[RowOutcome | None]) -> None:
        self.num_noted += 1

    def select_rows(self, rows: Sequence[int]) -> None:
        pass


def test_policies_take_part_between_replays(pair: tuple[TransformersRunner, TransformersRunner]) -> None:
    options = GenerationOptions(gamma=2, beam_width=2)
    built = _decoder(pair, options, 1.0, captured=True)
    decoder = AssistedDecoder(built.target, built.drafter, built.verifier, [_Meddler()], capture=record_call)
    replayed = _decode(decoder, 1.0, counts=(40, 38, 39))
    eager = _decode(_decoder(pair, options, 1.0, captured=False), 1.0, counts=(40, 38, 39))
    assert [result.token_ids for result in replayed] == [result.token_ids for result in eager]
    assert decoder.loop is not None
    assert decoder.loop.num_captures >= 1


def test_the_cpu_captures_nothing(pair: tuple[TransformersRunner, TransformersRunner]) -> None:
    built = build_decoder(GenerationOptions(), *pair, frozenset({EOS}), temperature=1.0)
    assert isinstance(built, AssistedDecoder)
    assert built.loop is None


def test_a_call_that_reads_from_the_device_goes_on_as_it_is() -> None:
    state = torch.zeros(2, dtype=torch.int64)

    def call(active: torch.Tensor) -> torch.Tensor:
        if int(state[0]) < 100:
            state.add_(active)
        return state.clone().unsqueeze(1)

    loop = ReplayLoop(call, lambda: int(state[0].data_ptr()), record_call, torch.device("cpu"))
    seen = [loop.run([True, step < 2]).tolist() for step in range(4)]
    assert isinstance(loop.refusal, HostReadError)
    assert seen == [[[1], [1]], [[2], [2]], [[3], [3]], [[4], [3]]]


def test_rows_under_way_are_thinned_with_the_others() -> None:
    state = [torch.arange(3)]

    def call(active: torch.Tensor) -> torch.Tensor:
        state[0].add_(10)
        return state[0].clone().unsqueeze(1)

    loop = ReplayLoop(call, lambda: int(state[0].data_ptr()), record_call, torch.device("cpu"))
    assert loop.run([True] * 3).tolist() == [[10], [11], [12]]
    loop.select_rows([2, 0])
    state[0] = state[0][[2, 0]]
    assert loop.run([True] * 2).tolist() == [[22], [20]]
    assert loop.run([True] * 2).tolist() == [[32], [30]]
    assert loop.num_captures == 2
