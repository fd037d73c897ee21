"""NVML without a GPU: a module of our own stands in for pynvml."""

import sys

import pytest
from tests.unit.energy.fakes import FakeGpu, FakeNvml

from mtad.energy.nvml import open_nvml
from mtad.errors import EnergyError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


@pytest.fixture
def library() -> FakeNvml:
    return FakeNvml([FakeGpu("GPU-aa11"), FakeGpu("GPU-bb22"), FakeGpu("GPU-bb33")])


def test_joules_are_those_of_all_visible_gpus(library: FakeNvml) -> None:
    backend = open_nvml(library)
    mark = backend.begin()
    for gpu in library.gpus:
        gpu.millijoules += 1500
    assert backend.end(mark) == {"gpu": pytest.approx(4.5)}
    library.gpus[0].millijoules = 0
    with pytest.raises(EnergyError, match="went backwards"):
        backend.end(mark)
    backend.close()
    backend.close()
    assert library.num_open == 0


@pytest.mark.parametrize(
    ("visible", "counted"),
    [("1", [1]), ("2,0", [0, 2]), ("GPU-bb3", [2]), ("0,7,1", [0]), (" 1 , 2 ", [1, 2])],
)
def test_only_visible_gpus_count(library: FakeNvml, visible: str, counted: list[int]) -> None:
    backend = open_nvml(library, visible)
    mark = backend.begin()
    for place, gpu in enumerate(library.gpus):
        gpu.millijoules += 1000 * 10**place
    assert backend.end(mark)["gpu"] == pytest.approx(sum(10**place for place in counted))


@pytest.mark.parametrize("visible", ["", "-1", "GPU-bb", "NoSuch"])
def test_no_visible_gpu_is_no_measurement(library: FakeNvml, visible: str) -> None:
    with pytest.raises(EnergyError, match="CUDA shows no GPU"):
        open_nvml(library, visible)
    assert library.num_open == 0


def test_the_environment_names_the_gpus(library: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    backend = open_nvml(library)
    mark = backend.begin()
    library.gpus[0].millijoules += 1000
    assert backend.end(mark) == {"gpu": 0.0}


def test_numbers_of_unlike_gpus_are_ambiguous(library: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    library.gpus[1].name = "A100"
    with pytest.raises(EnergyError, match=r"unlike GPUs \(A100, H100\).*CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        open_nvml(library, "0")
    open_nvml(library, "GPU-aa11").close()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    open_nvml(library, "0").close()


def test_gpus_without_a_counter_of_their_own_are_refused(library: FakeNvml) -> None:
    library.gpus[0].has_counter = False
    with pytest.raises(EnergyError, match="H100 has no energy counter"):
        open_nvml(library)
    library.gpus[0] = FakeGpu("GPU-aa11", is_split=True)
    with pytest.raises(EnergyError, match="split by MIG"):
        open_nvml(library)
    with pytest.raises(EnergyError, match="is a slice of a GPU"):
        open_nvml(library, "MIG-1234")
    open_nvml(FakeNvml([FakeGpu("GPU-cc", name="V100")])).close()


def test_a_machine_without_driver_or_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnergyError, match="no NVIDIA driver"):
        open_nvml(FakeNvml([], has_driver=False))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(EnergyError, match=r"pip install 'mtad\[energy\]'"):
        open_nvml()


def test_a_gpu_that_is_lost_is_reported(library: FakeNvml) -> None:
    backend = open_nvml(library)
    library.gpus[1].has_counter = False
    with pytest.raises(EnergyError, match="cannot read a GPU's energy counter"):
        backend.begin()
