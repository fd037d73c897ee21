"""Joules in /metrics: what the meter counts, and nothing where it counts nothing."""

import json
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mtad.energy import EnergyMeter, open_meter
from mtad.energy.replay import ReplayBackend
from mtad.server.energy_metric import EnergyMetric


def test_joules_are_counted_by_scope() -> None:
    now = 0.0
    backend = ReplayBackend([0, 10], {"gpu": [0, 500], "dram": [0, 20]}, clock=lambda: now)
    registry = CollectorRegistry()
    registry.register(EnergyMetric(EnergyMeter([backend])))
    assert read(registry) == {"gpu": 0.0, "dram": 0.0}
    now = 10.0
    assert read(registry) == {"gpu": 500.0, "dram": 20.0}


def test_without_a_counter_there_are_no_values(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(EnergyMetric(open_meter("none")))
    assert read(registry) == {}
    recording = tmp_path / "joules.json"
    recording.write_text(json.dumps({"seconds": [0, 1], "joules": {"cpu_package": [0, 5]}}))
    counted = CollectorRegistry()
    counted.register(EnergyMetric(open_meter(f"replay:{recording}")))
    assert list(read(counted)) == ["cpu_package"]


def read(registry: CollectorRegistry) -> dict[str, float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = [sample for family in families for sample in family.samples]
    return {sample.labels["scope"]: sample.value for sample in samples if sample.name == "mtad_energy_joules_total"}
