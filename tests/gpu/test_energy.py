"""NVML's counter on a real GPU, and phases that are captured on it."""

import time
from collections.abc import Iterator

import pytest
import torch
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import EOS, tiny_model

from mtad.api import Engine
from mtad.api.contenders import parse_contenders
from mtad.api.phases import open_phases
from mtad.bench.energy import EnergyPlan, EnergyWorkload, open_energy_record, run_energy, synchronizer
from mtad.config import GenerationOptions, ModelOptions
from mtad.energy import EnergyMeter, open_meter
from mtad.errors import EnergyError
from mtad.models.loading import LoadedModels, SamplingDefaults
from mtad.models.transformers_runner import TransformersRunner
from mtad.results.energy import summarize_energy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PROMPTS = ["why is the sky blue?", "name a river"]


@pytest.fixture
def meter() -> Iterator[EnergyMeter]:
    pytest.importorskip("pynvml")
    try:
        meter = open_meter("nvml", synchronize=torch.cuda.synchronize)
    except EnergyError as error:
        pytest.skip(str(error))
    yield meter
    meter.close()


def engine_on(device: str) -> Engine:
    def serve(seed: int) -> TransformersRunner:
        runner = TransformersRunner(tiny_model("llama", seed=seed, max_position_embeddings=4096).to(device))
        runner.attach()
        return runner

    models = LoadedModels(
        target=serve(0),
        draft=serve(1),
        tokenizer=tiny_tokenizer(),
        defaults=SamplingDefaults(eos_token_ids=frozenset({EOS})),
        options=ModelOptions(target="tiny", draft="tiny-draft", device=device, dtype="float64"),
    )
    return Engine(models)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_on("cuda")


def test_work_takes_more_than_rest_and_about_what_power_says(meter: EnergyMeter) -> None:
    import pynvml

    idle = meter.measure_idle(3)
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    watts: list[float] = []

    def work() -> None:
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize()
        watts.append(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)

    meter.measure(work, 2)  # until power has settled
    watts.clear()
    reading, _ = meter.measure(work, 4)
    assert reading.reason is None
    assert reading.joules["gpu"] > 1.2 * idle.joules["gpu"] / idle.seconds * reading.seconds
    if pynvml.nvmlDeviceGetCount() == 1:
        expected = sum(watts) / len(watts) * reading.seconds
        assert reading.joules["gpu"] == pytest.approx(expected, rel=0.25)


def test_the_counter_rises(meter: EnergyMeter) -> None:
    assert meter.counter() == {"gpu": 0.0}
    time.sleep(1)
    first = meter.counter()["gpu"]
    time.sleep(1)
    assert meter.counter()["gpu"] > first > 0


@pytest.mark.parametrize("method", ["autoregressive", "speculative", "mtad", "mmtad"])
def test_captured_phases_are_those_of_the_cpu(engine: Engine, method: str) -> None:
    options = GenerationOptions(method=method, gamma=2, beam_width=2)
    with open_phases(engine, PROMPTS, options) as phases:
        found = [(phases.draft().cpu(), phases.score().cpu()) for _ in range(3)]
    with open_phases(engine_on("cpu"), PROMPTS, options) as phases:
        drafted, scored = phases.draft(), phases.score()
    for tokens, logits in found:
        assert torch.equal(tokens, drafted)
        # Rotations are made in float32, and the devices' cosines differ by its rounding.
        torch.testing.assert_close(logits, scored, rtol=1e-4, atol=1e-4)


def test_a_run_has_joules_for_every_contender_and_phase(meter: EnergyMeter, engine: Engine) -> None:
    meter.synchronize = synchronizer(engine)
    plan = EnergyPlan(
        contenders=parse_contenders(["speculative", "mmtad"], GenerationOptions()),
        workloads=[EnergyWorkload(pattern="bursty", batch_size=4, prompt_tokens=0, new_tokens=32)],
        repeats=1,
        window_s=3.0,
    )
    record = open_energy_record(engine, plan, meter, {})
    run_energy(engine, plan, meter, record, lambda _: None)
    rows = summarize_energy(record)
    assert [row.label for row in rows] == ["speculative", "mmtad"]
    for row in rows:
        assert row.reason is None
        assert row.joules_per_token is not None
        assert row.joules_per_token.value > 0
        assert row.draft_joules is not None
        assert row.draft_joules > 0
