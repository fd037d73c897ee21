"""Names of meters become meters; `auto` takes the best that there is."""

from collections.abc import Callable, Mapping
from pathlib import Path

from mtad.energy.backends import Backend
from mtad.energy.meter import EnergyMeter
from mtad.energy.nvml import open_nvml
from mtad.energy.rapl import open_rapl
from mtad.energy.readings import CPU_PACKAGE, DRAM, GPU, SCOPES
from mtad.energy.replay import open_replay
from mtad.energy.zeus import open_zeus
from mtad.errors import ConfigError, EnergyError

AUTO, NONE, REPLAY = "auto", "none", "replay"
Openers = Mapping[str, Callable[[], Backend]]
OPENERS: Openers = {"zeus": open_zeus, "nvml": open_nvml, "rapl": open_rapl}
_OWN_SCOPES = {"nvml": (GPU,), "rapl": (CPU_PACKAGE, DRAM)}


def open_meter(
    name: str = AUTO, *, synchronize: Callable[[], None] | None = None, openers: Openers = OPENERS
) -> EnergyMeter:
    """The meter of a name.

    `auto` is zeus where it finds something to count, else NVML for GPUs and RAPL for CPU packages and DRAM, whichever
    there are; where there is none, a meter that says why. A name that was asked for must be there.

    Args:
        name: `auto`, `zeus`, `nvml`, `rapl`, `none`, or `replay:FILE`.
        synchronize: Waits until the device has done what it was told.
        openers: How backends are opened.

    Raises:
        ConfigError: An unknown name.
        EnergyError: The backend that was asked for cannot be had.
    """
    if name == AUTO:
        backends, missing = _open_best(openers)
        return EnergyMeter(backends, missing, synchronize=synchronize)
    if name == NONE:
        return EnergyMeter([], dict.fromkeys(SCOPES, "no meter was asked for"), synchronize=synchronize)
    kind, _, path = name.partition(":")
    if kind == REPLAY and path:
        return EnergyMeter([open_replay(Path(path))], synchronize=synchronize)
    if name not in openers:
        known = ", ".join((AUTO, *openers, NONE))
        raise ConfigError(f"unknown meter {name!r}; known are {known}, and {REPLAY}:FILE")
    try:
        backend = openers[name]()
    except EnergyError as error:
        raise EnergyError(f"meter {name}: {error}; or choose --meter auto") from error
    return EnergyMeter([backend], _elsewhere(backend, name), synchronize=synchronize)


def _open_best(openers: Openers) -> tuple[list[Backend], dict[str, str]]:
    try:
        return [openers["zeus"]()], {}
    except EnergyError:
        pass  # its own parts are asked next, and say more
    found: list[Backend] = []
    missing: dict[str, str] = {}
    for name, scopes in _OWN_SCOPES.items():
        try:
            found.append(openers[name]())
        except EnergyError as error:
            missing |= dict.fromkeys(scopes, str(error))
    return found, missing


def _elsewhere(backend: Backend, name: str) -> dict[str, str]:
    """Why a single backend lacks scopes that it never has."""
    return {scope: f"meter {name} does not count it" for scope in SCOPES if scope not in backend.scopes}
