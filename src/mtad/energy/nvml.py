"""The total energy counters of NVIDIA GPUs, read through NVML."""

import os
from collections.abc import Sequence
from typing import Any

from mtad.energy.backends import CounterBackend
from mtad.energy.readings import GPU
from mtad.errors import EnergyError


class NvmlBackend(CounterBackend):
    """The visible GPUs together.

    Args:
        library: The module `pynvml`, started.
        handles: Its handles of the GPUs, at least one.
    """

    name = "nvml"
    scopes = (GPU,)
    # Counters tick every 20 to 100 ms.
    resolution_s = 0.1

    def __init__(self, library: Any, handles: Sequence[Any]) -> None:
        self.missing: dict[str, str] = {}
        self._library = library
        self._handles: list[Any] = list(handles)
        self._is_closed = False

    def read(self) -> dict[str, float]:
        """See `CounterBackend.read`."""
        try:
            counts = [self._library.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles]
        except self._library.NVMLError as error:
            raise EnergyError(f"NVML cannot read a GPU's energy counter ({error})") from error
        return {GPU: sum(counts) / 1000.0}

    def close(self) -> None:
        """See `Backend.close`."""
        if not self._is_closed:
            self._is_closed = True
            self._library.nvmlShutdown()


def open_nvml(library: Any | None = None, visible: str | None = None) -> NvmlBackend:
    """The counters of the GPUs that CUDA shows this process.

    Args:
        library: The module `pynvml`; imported where it is None.
        visible: GPUs as in `CUDA_VISIBLE_DEVICES`, which is read where it is None.

    Raises:
        EnergyError: There is no such GPU, or one without a counter of its own.
    """
    library = library or _import_library()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise EnergyError(f"NVML finds no NVIDIA driver ({error})") from error
    try:
        handles = _visible_handles(library, visible)
        for handle in handles:
            _check(library, handle)
    except (EnergyError, library.NVMLError) as error:
        library.nvmlShutdown()
        if isinstance(error, EnergyError):
            raise
        raise EnergyError(f"NVML cannot read the GPUs ({error})") from error
    return NvmlBackend(library, handles)


def _import_library() -> Any:
    try:
        import pynvml
    except ModuleNotFoundError as error:
        raise EnergyError("NVML is read with nvidia-ml-py; install it with pip install 'mtad[energy]'") from error
    return pynvml


def _visible_handles(library: Any, visible: str | None) -> list[Any]:
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    if visible is not None:
        words = [word.strip() for word in visible.split(",") if word.strip()]
        _check_order(library, handles, words)
        uuids = [_text(library.nvmlDeviceGetUUID(handle)) for handle in handles]
        chosen: list[Any] = []
        for word in words:
            place = _place(word, uuids)
            if place is None:  # CUDA reads up to the first word that names no GPU
                break
            chosen.append(handles[place])
        handles = chosen
    if not handles:
        raise EnergyError("CUDA shows no GPU to this process; look at CUDA_VISIBLE_DEVICES")
    return handles


def _place(word: str, uuids: Sequence[str]) -> int | None:
    """Number of the GPU that a word of `CUDA_VISIBLE_DEVICES` names, by number or by the beginning of its UUID."""
    if word.startswith("MIG"):
        raise EnergyError(f"{word} is a slice of a GPU, whose counter counts all slices; use a GPU that is not split")
    if word.isdecimal():
        return int(word) if int(word) < len(uuids) else None
    matches = [place for place, uuid in enumerate(uuids) if uuid.startswith(word)]
    return matches[0] if len(matches) == 1 else None


def _check_order(library: Any, handles: Sequence[Any], words: Sequence[str]) -> None:
    """Refuse numbers that CUDA may count in another order than NVML does."""
    names = {_text(library.nvmlDeviceGetName(handle)) for handle in handles}
    is_by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if len(names) > 1 and not is_by_bus and any(word.isdecimal() for word in words):
        raise EnergyError(
            f"CUDA may number these unlike GPUs ({', '.join(sorted(names))}) in another order than NVML; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name UUIDs in CUDA_VISIBLE_DEVICES"
        )


def _check(library: Any, handle: Any) -> None:
    name = _text(library.nvmlDeviceGetName(handle))
    try:
        is_split = bool(library.nvmlDeviceGetMigMode(handle)[0])
    except library.NVMLError:
        is_split = False  # no MIG on such a GPU
    if is_split:
        raise EnergyError(f"{name} is split by MIG, and its counter counts all slices; use a GPU that is not split")
    try:
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError as error:
        raise EnergyError(f"{name} has no energy counter ({error}); GPUs since Volta have one") from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
