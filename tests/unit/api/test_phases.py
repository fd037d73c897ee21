"""Drafting and scoring apart do what an iteration does, each time the same."""

import pytest
import torch
from tests.recorded_calls import record_call
from tests.tiny_engine import tiny_engine

from mtad.api import Engine
from mtad.api.phases import open_phases
from mtad.config import GenerationOptions
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.phases import PhaseLoop
from mtad.errors import MtadError, UnsupportedOperationError
from mtad.models.graphs import Call

PROMPTS = ["why is the sky blue?", "name a river"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.mark.parametrize("method", ["speculative", "mtad", "mmtad"])
def test_each_phase_repeats_itself(engine: Engine, method: str) -> None:
    with open_phases(engine, PROMPTS, GenerationOptions(method=method, gamma=2, beam_width=2)) as phases:
        drafted, scored = phases.draft().clone(), phases.score().clone()
        assert drafted.shape == (2, phases.num_nodes)
        assert scored.shape[:2] == (2, 1 + phases.num_nodes)
        for _ in range(3):
            assert torch.equal(phases.draft(), drafted)
            assert torch.equal(phases.score(), scored)


def test_the_draft_is_the_one_that_decoding_makes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    options = GenerationOptions(method="speculative", gamma=3, seed=5, max_new_tokens=1)
    trees = []
    score_tree = type(engine.models.target).score_tree

    def note(pending: torch.Tensor, tree: object) -> torch.Tensor:
        trees.append(tree)
        return score_tree(engine.models.target, pending, tree)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.models.target, "score_tree", note)
    engine.generate(PROMPTS, options)
    with open_phases(engine, PROMPTS, options) as phases:
        assert torch.equal(phases.draft(), trees[0].tokens)  # type: ignore[attr-defined]


def test_without_a_draft_there_is_only_the_target(engine: Engine) -> None:
    with open_phases(engine, PROMPTS, GenerationOptions(method="autoregressive")) as phases:
        assert phases.num_nodes == 0
        assert phases.draft().shape == (2, 0)
        assert phases.score().shape[:2] == (2, 1)


def test_captured_phases_give_the_same(engine: Engine) -> None:
    options = GenerationOptions(method="mmtad", gamma=2, beam_width=2)
    with open_phases(engine, PROMPTS, options) as phases:
        expected = phases.draft().clone(), phases.score().clone()
        decoder = phases._decoder
        assert isinstance(decoder, AssistedDecoder)
        calls = []

        def capture(call: Call) -> Call:
            calls.append(record_call(call))
            return calls[-1]

        captured = PhaseLoop(decoder, capture)
        assert len(calls) == 2
        for _ in range(3):
            assert torch.equal(captured.draft(), expected[0])
            torch.testing.assert_close(captured.score(), expected[1])


def test_an_empty_draft_is_not_captured(engine: Engine) -> None:
    calls = []

    def capture(call: Call) -> Call:
        calls.append(record_call(call))
        return calls[-1]

    with open_phases(engine, PROMPTS, GenerationOptions(method="autoregressive")) as phases:
        PhaseLoop(phases._decoder, capture)
    assert len(calls) == 1


def test_the_engine_is_busy_meanwhile_and_free_afterwards(engine: Engine) -> None:
    with (
        open_phases(engine, PROMPTS, GenerationOptions(method="autoregressive")),
        pytest.raises(MtadError, match="already decoding"),
    ):
        engine.generate("hi", max_new_tokens=2)
    assert engine.generate("hi", max_new_tokens=2).stats.num_tokens


def test_methods_without_phases_say_so(engine: Engine) -> None:
    phases = open_phases(engine, PROMPTS, GenerationOptions(method="beam_sampling"))
    with pytest.raises(UnsupportedOperationError, match="beam_sampling has no phases"):
        phases.__enter__()
