"""Times the tree-attention kernel against the bytes it must read, and against PyTorch's attention under a mask.

Needs a CUDA device. Run: python benchmarks/tree_attention.py
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtad.models.forward import ForwardBatch
from mtad.models.kernels.launch import tree_attention_kernel

REPEATS = 50
SHAPES = {"llama-3.1-8b": (32, 8, 128), "llama-3.2-1b": (32, 8, 64), "llama-2-13b": (40, 40, 128)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call: rows of `length` committed tokens, `queries` tokens each, `room` slots behind them."""

    shape: str
    rows: int
    length: int
    queries: int
    room: int


def main() -> None:
    """Print one line per case, then all of them as JSON."""
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; run this where there is a GPU")
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, copies {bandwidth / 1e12:.2f} TB/s")
    cases = [
        Case(shape=shape, rows=rows, length=length, queries=queries, room=room)
        for shape in SHAPES
        for rows, length in ((1, 512), (1, 4096), (1, 16384), (8, 4096), (32, 1024))
        for queries in (1, 5, 17)
        for room in (0, 16384)
    ]
    records = [measure(case, bandwidth) for case in cases]
    print(json.dumps({"device": torch.cuda.get_device_name(), "bandwidth": bandwidth, "cases": records}))


def measure(case: Case, bandwidth: float) -> dict[str, float | str]:
    """Microseconds of the kernel, of masked attention, and of the floor: keys and values once over the bandwidth."""
    heads, key_heads, head_dim = SHAPES[case.shape]
    batch = tree_behind(case)
    slots = case.length + case.queries + case.room
    states = [
        torch.randn(case.rows, count, length, head_dim, device="cuda", dtype=torch.bfloat16)
        for count, length in ((heads, case.queries), (key_heads, slots), (key_heads, slots))
    ]
    query, key, value = states
    visible = case.length + case.queries
    floor_us = 2 * case.rows * key_heads * visible * head_dim * 2 / bandwidth * 1e6
    kernel_us = time_us(lambda: tree_attention_kernel(query, key, value, batch, scaling=head_dim**-0.5))
    folded = query.reshape(case.rows, key_heads, -1, head_dim)
    mask = batch.additive_mask(heads // key_heads, query)
    masked_us = time_us(lambda: torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask))
    print(f"{case}: kernel {kernel_us:.1f} us, floor {floor_us:.1f} us, masked {masked_us:.1f} us")
    named = {name: getattr(case, name) for name in ("shape", "rows", "length", "queries", "room")}
    return named | {"kernel_us": kernel_us, "masked_us": masked_us, "floor_us": floor_us}


def tree_behind(case: Case) -> ForwardBatch:
    """A pending token and a chain of drafted ones behind every row."""
    order = torch.arange(case.queries, device="cuda").expand(case.rows, -1)
    return ForwardBatch(
        tokens=torch.zeros_like(order),
        positions=case.length + order,
        slots=case.length + order,
        prefix_lengths=torch.full_like(order, case.length + 1),
        ancestors=(torch.ones_like(order) << order) - 1,
        tree_starts=torch.full_like(order[:, 0], case.length + 1),
        num_slots=case.length + case.queries + case.room,
        num_logits=case.queries,
    )


def time_us(call: Callable[[], Tensor]) -> float:
    """Median time of one replay of the call in a CUDA graph, so that launches on the host do not count."""
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    # What a larger array than the second-level cache leaves behind is cold.
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    for _ in range(REPEATS):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return float(torch.tensor(times).median())


def copy_bandwidth() -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / (time_us(lambda: target.copy_(source)) * 1e-6)


if __name__ == "__main__":
    main()
