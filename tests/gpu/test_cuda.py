"""The same tokens on a CUDA device as on the CPU, in float64, for every method."""

import os
from dataclasses import replace
from itertools import chain
from threading import Event
from typing import Any

import pytest
import torch
import torch._inductor
from tests.tiny_models import EOS, tiny_model

from mtad.api.memory import memory_errors
from mtad.config import GenerationOptions
from mtad.decoding import AnswerLimits, Decoder, Machine, Request, RunFacts, build_decoder, generate_pieces
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.outcome import RowOutcome
from mtad.errors import CapacityError
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import GenerationResult, RowSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

METHODS: list[dict[str, Any]] = [
    {"method": "autoregressive"},
    {"method": "speculative"},
    {"method": "mtad"},
    {"method": "mmtad"},
    {"method": "mmtad", "draw": "gumbel"},
]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]


def name_changes(changes: dict[str, Any]) -> str:
    return "-".join(str(value) for value in changes.values())


def _runner(seed: int, device: str) -> TransformersRunner:
    runner = TransformersRunner(tiny_model(seed=seed).to(device))
    runner.attach()
    return runner


def _decode(options: GenerationOptions, temperature: float, device: str) -> list[GenerationResult]:
    return _run(_decoder(options, temperature, device), options, temperature)


def _decoder(options: GenerationOptions, temperature: float, device: str, machine: Machine | None = None) -> Decoder:
    runners = _runner(0, device), _runner(1, device)
    return build_decoder(options, *runners, frozenset({EOS}), temperature=temperature, machine=machine)


def _run(decoder: Decoder, options: GenerationOptions, temperature: float) -> list[GenerationResult]:
    settings = RowSettings(seed=3, temperature=temperature, top_k=8, top_p=0.9, threshold=options.threshold)
    limits = AnswerLimits(max_new_tokens=24, eos_token_ids=frozenset({EOS}))
    requests = [
        Request(row=row, prompt=prompt, settings=replace(settings, seed=row), limits=limits)
        for row, prompt in enumerate(PROMPTS)
    ]
    pieces = generate_pieces(decoder, requests, lambda token_ids: " ".join(map(str, token_ids)), RunFacts(method="x"))
    return sorted((piece.result for piece in pieces if piece.result), key=lambda result: result.stats.num_prompt_tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "changes",
    [
        *METHODS,
        {"method": "beam_sampling"},
        {"method": "dynamic_beam"},
        {"method": "dynamic_beam", "draw": "gumbel"},
        {"method": "mtjd", "gamma": 2},
    ],
    ids=name_changes,
)
def test_cuda_gives_the_tokens_of_the_cpu(changes: dict[str, Any], temperature: float) -> None:
    options = GenerationOptions(**changes)
    on_cpu = _decode(options, temperature, "cpu")
    on_cuda = _decode(options, temperature, "cuda")
    assert [result.token_ids for result in on_cuda] == [result.token_ids for result in on_cpu]
    for cuda_result, cpu_result in zip(on_cuda, on_cpu, strict=True):
        # Rotations are made in float32 whatever the weights are, and the devices' cosines differ by its rounding.
        assert cuda_result.log_probs == pytest.approx(cpu_result.log_probs, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "changes",
    [
        *METHODS,
        {"verifier": "block", "drafter": "chain"},
        {"verifier": "traversal", "drafter": "branching_tree"},
        {"verifier": "joint", "drafter": "dynamic_tree"},
        {"verifier": "exact_match", "drafter": "prompt_lookup"},
    ],
    ids=name_changes,
)
def test_captured_iterations_give_the_tokens_of_those_run_one_by_one(
    changes: dict[str, Any], temperature: float
) -> None:
    options = GenerationOptions(**changes)
    decoder = _decoder(options, temperature, "cuda")
    captured = _run(decoder, options, temperature)
    eager = _decode(replace(options, cuda_graphs="off"), temperature, "cuda")
    assert isinstance(decoder, AssistedDecoder)
    assert decoder.loop is not None
    assert decoder.loop.refusal is None
    assert decoder.loop.num_captures >= 1
    assert [result.token_ids for result in captured] == [result.token_ids for result in eager]


def _iterate(decoder: Decoder, options: GenerationOptions, count: int = 10) -> list[list[RowOutcome | None]]:
    """Iterations of a batch that no row leaves: one shape, so every part is compiled once."""
    settings = [RowSettings(seed=row, top_k=8, top_p=0.9, threshold=options.threshold) for row in range(len(PROMPTS))]
    decoder.prefill(PROMPTS, settings, [64] * len(PROMPTS))
    return [decoder.step([True] * len(PROMPTS)) for _ in range(count)]


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other workers kernels are compiled in the test's process, not in as many more as there are cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        monkeypatch.setattr("torch._inductor.config.compile_threads", 1)


# Inductor writes 16 to 84 kernels a method, and Triton takes up to seconds for each.
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(
    "changes",
    [
        *METHODS,
        {"verifier": "joint_expected"},
        {"verifier": "block", "drafter": "chain"},
        {"verifier": "traversal", "drafter": "branching_tree"},
        {"verifier": "typical", "drafter": "dynamic_tree"},
        {"verifier": "exact_match", "drafter": "prompt_lookup"},
    ],
    ids=name_changes,
)
def test_compiled_and_captured_iterations_give_the_same_tokens(changes: dict[str, Any]) -> None:
    options, machine = GenerationOptions(**changes, compile="on"), Machine()
    decoder = _decoder(options, 1.0, "cuda", machine)
    compiled = _iterate(decoder, options)
    plain = replace(options, cuda_graphs="off", compile="off")
    eager = _iterate(_decoder(plain, 1.0, "cuda"), plain)
    assert isinstance(decoder, AssistedDecoder)
    assert decoder.loop is not None
    assert decoder.loop.refusal is None
    assert decoder.loop.num_captures == 1
    assert machine.compiler.num_programs > 0
    assert not machine.compiler.failed
    for ours, theirs in zip(chain(*compiled), chain(*eager), strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.tokens == theirs.tokens
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("own_process")
def test_programs_made_in_the_background_are_captured_once_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    may_compile, compile_now = Event(), torch._inductor.compile

    def compile_later(graph: Any, examples: Any) -> Any:
        assert may_compile.wait(60)
        return compile_now(graph, examples)

    monkeypatch.setattr("torch._inductor.compile", compile_later)
    options, machine = GenerationOptions(method="mmtad", compile="background"), Machine()
    decoder = _decoder(options, 1.0, "cuda", machine)
    # Rows leave, so two shapes are compiled, and captured before and after that.
    before = _run(decoder, options, 1.0)
    assert isinstance(decoder, AssistedDecoder)
    assert decoder.loop is not None
    captures = decoder.loop.num_captures
    assert machine.background_compiler.num_programs == 0
    may_compile.set()
    machine.background_compiler.wait()
    after = _run(decoder, options, 1.0)
    assert [result.token_ids for result in before] == [result.token_ids for result in after]
    assert machine.background_compiler.generation >= 1
    assert machine.background_compiler.num_programs > 0
    assert not machine.background_compiler.failed
    assert decoder.loop.refusal is None
    assert decoder.loop.num_captures > captures


def test_the_host_reads_once_an_iteration() -> None:
    options = GenerationOptions(method="mmtad")
    decoder = _decoder(options, 1.0, "cuda")
    settings = [RowSettings(seed=row) for row in range(len(PROMPTS))]
    decoder.prefill(PROMPTS, settings, [64] * len(PROMPTS))
    for _ in range(3):
        decoder.step([True] * len(PROMPTS))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(4):
            decoder.step([True] * len(PROMPTS))
        torch.cuda.synchronize()
    copies = [event for event in profile.events() or () if "Memcpy DtoH" in event.name]
    assert len(copies) == 4


def test_memory_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(CapacityError, match=r"lower --batch-size, .*--max-new-tokens"), memory_errors():
        torch.empty(1 << 44, dtype=torch.int64, device="cuda")


def test_a_later_batch_replays_what_was_captured() -> None:
    options = GenerationOptions(method="mmtad", ignore_eos=True)
    decoder = _decoder(options, 1.0, "cuda")
    assert isinstance(decoder, AssistedDecoder)
    assert decoder.loop is not None
    settings = [RowSettings(seed=row) for row in range(len(PROMPTS))]
    for _ in range(3):
        decoder.prefill(PROMPTS, settings, [64] * len(PROMPTS))
        for _ in range(4):
            decoder.step([True] * len(PROMPTS))
    assert decoder.loop.num_captures == 1


def test_a_guard_times_replays_by_events_and_needs_no_host() -> None:
    options = GenerationOptions(method="mmtad", gamma=3, guard="on", ignore_eos=True)
    decoder = _decoder(options, 1.0, "cuda")
    assert isinstance(decoder, AssistedDecoder)
    assert decoder.guard is not None
    assert decoder.loop is not None
    settings = [RowSettings(seed=row, top_k=8, threshold=0.3) for row in range(len(PROMPTS))]
    decoder.prefill(PROMPTS, settings, [96] * len(PROMPTS))
    measured = []
    for _ in range(40):
        assert decoder.is_replayed
        decoder.step([True] * len(PROMPTS))
        measured.append((decoder.loop.landed_mode[0], decoder.loop.landed_s))
    assert decoder.loop.refusal is None
    assert {depth for depth, _ in measured} >= {0, 3}, "a plain step is measured"
    assert {depth for depth, seconds in measured if seconds is not None and seconds > 0} >= {0, 3}


def test_quantised_weights_of_torchao_decode() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny_model(dtype=torch.bfloat16, hidden_size=64, intermediate_size=128, head_dim=16).to("cuda")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    target = TransformersRunner(model)
    target.attach()
    draft = TransformersRunner(tiny_model(seed=1, dtype=torch.bfloat16).to("cuda"))
    draft.attach()
    options = GenerationOptions(method="mmtad", ignore_eos=True)
    decoder = build_decoder(options, target, draft, frozenset(), temperature=1.0)
    results = _run(decoder, options, 1.0)
    assert len(results) == len(PROMPTS)
    assert all(len(result.token_ids) == 24 or result.token_ids[-1] == EOS for result in results)
    assert all(log_prob <= 0 for result in results for log_prob in result.log_probs)
