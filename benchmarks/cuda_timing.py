"""What the benchmarks of CUDA kernels share: the memory's bandwidth, and the time of a call without its launches."""

from collections.abc import Callable

import torch

from mtad.bench.bandwidth import measure_bandwidth

_REPEATS = 10


def device_bandwidth() -> float:
    """Bytes a second that the CUDA device reads; leaves the program where there is none."""
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; run this where there is a GPU")
    return measure_bandwidth(torch.device("cuda"))


def time_s(call: Callable[[], object]) -> float:
    """Median time of one replay of the call in a CUDA graph, so that launches on the host do not count."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    times = []
    for _ in range(_REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(torch.tensor(times).median())
