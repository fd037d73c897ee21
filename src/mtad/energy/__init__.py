"""Joules over a window, from hardware counters, or an honest "not measured". Loads no torch."""

from mtad.energy.meter import MINIMUM_WINDOW_S, EnergyMeter, Window
from mtad.energy.opening import open_meter
from mtad.energy.readings import SCOPE_NAMES, SCOPES, EnergyReading, join_reasons, name_scopes

__all__ = [
    "MINIMUM_WINDOW_S",
    "SCOPES",
    "SCOPE_NAMES",
    "EnergyMeter",
    "EnergyReading",
    "Window",
    "join_reasons",
    "name_scopes",
    "open_meter",
]
