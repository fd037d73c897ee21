"""Joules for Prometheus, where a counter measures them."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from mtad.energy import EnergyMeter


class EnergyMetric(Collector):
    """`mtad_energy_joules_total` by scope: what the hardware counted since the first reading, requests or none.

    Args:
        meter: Read whenever the metrics are; without scopes the metric has no values.
    """

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        """The metric as it stands."""
        family = CounterMetricFamily("mtad_energy_joules", "Joules since the first reading.", labels=("scope",))
        for scope, joules in self._meter.counter().items():
            family.add_metric((scope,), joules)
        yield family
