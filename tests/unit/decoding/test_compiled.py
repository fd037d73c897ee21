"""Iterations whose parts between the models' calls are compiled give the tokens of those that run as written."""

import warnings
from dataclasses import replace
from itertools import chain
from threading import Event
from typing import Any

import pytest
import torch
from tests.recorded_calls import record_call
from tests.tiny_models import EOS, tiny_model
from tests.unit.decoding.test_captured import PAIRS

from mtad.config import GenerationOptions
from mtad.decoding import Machine, build_decoder
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.outcome import RowOutcome
from mtad.models.step_compiler import StepCompiler
from mtad.models.transformers_runner import TransformersRunner
from mtad.sampling import draw_ahead
from mtad.structures import RowControls, RowSettings
from mtad.structures.between_calls import taken_by

ROWS = [
    RowSettings(seed=1, temperature=0.7, top_k=5),
    RowSettings(seed=2, temperature=0),
    RowSettings(seed=3, temperature=1.3, top_p=0.8, min_p=0.05, threshold=0.2),
    RowSettings(seed=4, temperature=1.0, top_k=8, top_p=0.9, draft_confidence=0.05),
]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16]]
ALIKE = [RowSettings(seed=1, temperature=1.0, top_k=10, top_p=0.9)]

Pair = tuple[TransformersRunner, TransformersRunner]


@pytest.fixture(scope="module")
def pair() -> Pair:
    target, draft = tiny_model(seed=0), tiny_model(seed=1)
    with torch.no_grad():
        # Near enough to the target that something is kept.
        for own, other in zip(draft.parameters(), target.parameters(), strict=True):
            own.copy_(other + 0.15 * own)
    runners = TransformersRunner(target), TransformersRunner(draft)
    for runner in runners:
        runner.attach()
    return runners


@pytest.fixture(scope="module")
def machine() -> Machine:
    """What was traced for one pair of parts serves the others."""
    return Machine()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are what was traced, run operation by operation."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, examples: graph)


def _decode(
    pair: Pair, options: GenerationOptions, rows: list[RowSettings], machine: Machine, steps: int = 6
) -> list[list[RowOutcome | None]]:
    decoder = build_decoder(options, *pair, frozenset({EOS}), temperature=1.0, machine=machine)
    decoder.prefill(PROMPTS[: len(rows)], rows, [60] * len(rows))
    return [decoder.step([True] * len(rows)) for _ in range(steps)]


def _check_same(left: list[list[RowOutcome | None]], right: list[list[RowOutcome | None]]) -> None:
    for ours, theirs in zip(chain(*left), chain(*right), strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.tokens == theirs.tokens
        assert ours.num_drafted == theirs.num_drafted
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-9)
        assert ours.refusals == pytest.approx(theirs.refusals, abs=1e-9)
        assert ours.joint_log_ratio == pytest.approx(theirs.joint_log_ratio, abs=1e-9)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("drafter", "verifier"), PAIRS, ids=lambda name: name)
def test_every_part_can_be_shown_to_a_compiler(pair: Pair, machine: Machine, drafter: str, verifier: str) -> None:
    options = GenerationOptions(
        drafter=drafter, verifier=verifier, gamma=2, beam_width=3, branching="3,2", draw="gumbel"
    )
    asked = _decode(pair, replace(options, compile="on"), ROWS, machine, 4)
    _check_same(asked, _decode(pair, options, ROWS, machine, 4))
    assert machine.compiler.num_programs > 0
    assert not machine.compiler.failed


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "speculative"},
        {"method": "mtad"},
        {"method": "mmtad"},
        {"method": "mmtad", "draw": "sample"},
        {"method": "mmtad", "draw": "gumbel"},
        {"method": "mmtad", "verifier": "joint_expected"},
        {"drafter": "chain", "verifier": "block"},
        {"drafter": "branching_tree", "verifier": "traversal"},
        {"drafter": "dynamic_tree", "verifier": "typical"},
        {"method": "mmtad", "verifier": "threshold"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_compiled_parts_give_the_same_tokens(pair: Pair, changes: dict[str, Any]) -> None:
    _check_compiled(pair, GenerationOptions(gamma=3, beam_width=3, branching="3,2", **changes), ROWS)


def test_compiled_draws_are_the_same_to_the_bit() -> None:
    rows = RowControls.from_settings(ROWS, one_hot_at_zero=False).at(torch.tensor([0, 3, 70_000, 5]))
    rows = replace(rows, seeds=rows.seeds * 2**60 + rows.seeds)
    compiler = StepCompiler()
    with taken_by(compiler):
        compiled = draw_ahead(rows, 4, 5).noise
    written = draw_ahead(rows, 4, 5).noise
    assert compiled is not None
    assert written is not None
    assert torch.equal(compiled, written)
    assert (compiler.num_programs, compiler.failed) == (1, set())


@pytest.mark.slow
def test_compiled_single_tokens_are_the_same(pair: Pair) -> None:
    _check_compiled(pair, GenerationOptions(method="autoregressive"), ALIKE)


def _check_compiled(pair: Pair, options: GenerationOptions, rows: list[RowSettings]) -> None:
    machine = Machine()
    asked = _decode(pair, replace(options, compile="on"), rows, machine, 10)
    _check_same(asked, _decode(pair, options, rows, machine, 10))
    assert not machine.compiler.failed
    made = machine.compiler.num_programs
    _decode(pair, replace(options, compile="on", seed=5), rows, machine, 10)
    assert machine.compiler.num_programs == made


def _compiled_in_background(pair: Pair, options: GenerationOptions, **how: Any) -> tuple[AssistedDecoder, StepCompiler]:
    built = build_decoder(options, *pair, frozenset({EOS}), temperature=1.0)
    assert isinstance(built, AssistedDecoder)
    compiler = StepCompiler(in_background=True)
    decoder = AssistedDecoder(built.target, built.drafter, built.verifier, compiler=compiler, **how)
    decoder.prefill(PROMPTS[:1], ALIKE, [60])
    return decoder, compiler


def test_programs_come_into_use_between_iterations_and_captures_are_renewed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_compile = Event()

    def compile_later(graph: Any, examples: Any) -> Any:
        assert may_compile.wait(60)
        return graph

    monkeypatch.setattr("torch._inductor.compile", compile_later)
    options = GenerationOptions(method="mmtad", gamma=3, beam_width=3)
    decoder, compiler = _compiled_in_background(pair, options, capture=record_call)
    outcomes = [decoder.step([True]) for _ in range(3)]
    assert decoder.loop is not None
    assert (decoder.loop.num_captures, compiler.num_programs) == (1, 0)
    may_compile.set()
    compiler.wait()
    outcomes += [decoder.step([True]) for _ in range(5)]
    assert decoder.loop.num_captures == 2
    assert compiler.num_programs > 5
    assert compiler.generation == 1
    _check_same(outcomes, _decode(pair, options, ALIKE, Machine(), 8))


def test_a_compiler_in_the_background_that_dies_of_something_strange_is_not_waited_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(graph: Any, examples: Any) -> Any:
        raise ArithmeticError("strange")

    monkeypatch.setattr("torch._inductor.compile", die)
    options = GenerationOptions(method="mmtad", gamma=3, beam_width=3)
    decoder, compiler = _compiled_in_background(pair, options)
    outcomes = [decoder.step([True])]
    compiler.wait()
    outcomes += [decoder.step([True]) for _ in range(2)]
    assert (compiler.num_programs, capsys.readouterr().err.count("strange")) == (0, 1)
    _check_same(outcomes, _decode(pair, options, ALIKE, Machine(), 3))


def test_a_compiler_that_fails_is_named_once_and_decoding_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(graph: Any, examples: Any) -> Any:
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr("torch._inductor.compile", fail)
    options = GenerationOptions(method="mmtad", gamma=2, beam_width=2)
    machine = Machine()
    asked = _decode(pair, replace(options, compile="on"), ALIKE, machine)
    _check_same(asked, _decode(pair, options, ALIKE, machine))
    assert capsys.readouterr().err == "mtad: _mixed runs as it is, for it could not be compiled: no C++ compiler\n"
    assert machine.compiler.num_programs == 0


def test_what_inductor_says_of_wide_vocabularies_is_not_passed_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(graph: Any, examples: Any) -> Any:
        warnings.warn("\nOnline softmax is disabled on the fly since Inductor decides to\nsplit", stacklevel=1)
        return graph

    monkeypatch.setattr("torch._inductor.compile", talk)
    machine = Machine()
    _decode(pair, GenerationOptions(method="autoregressive", compile="on"), ALIKE, machine, 1)
    assert machine.compiler.num_programs > 0


def test_a_program_that_fails_is_named_and_left_out(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*tensors: Any) -> Any:
        raise RuntimeError("out of registers")

    monkeypatch.setattr("torch._inductor.compile", lambda graph, examples: broken)
    options = GenerationOptions(method="autoregressive")
    asked = _decode(pair, replace(options, compile="on"), ALIKE, Machine())
    _check_same(asked, _decode(pair, options, ALIKE, Machine()))
    assert capsys.readouterr().err == "mtad: _mixed runs as it is, for it could not be compiled: out of registers\n"
