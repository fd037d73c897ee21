"""The tree-attention kernel against an explicit mask in float64.

Runs on a CUDA device, or anywhere in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/gpu/test_tree_kernel.py`.
"""

import os
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from mtad.models.forward import ForwardBatch
from mtad.models.kernels.launch import Tiling, tree_attention_kernel
from mtad.structures import ancestor_bitmask

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and not IS_INTERPRETED, reason="neither a CUDA device nor Triton's interpreter"
    ),
]


def _batch(lengths: list[int], queries: int, num_slots: int, generator: torch.Generator) -> ForwardBatch:
    """A pending token and a random tree behind rows of these lengths, as `score_tree` makes them."""
    nodes = queries - 1
    parents = torch.stack(
        [
            torch.tensor([int(torch.randint(-1, node, (1,), generator=generator)) for node in range(nodes)])
            for _ in lengths
        ]
    ).long()
    committed = torch.tensor(lengths).unsqueeze(1)
    bits = torch.cat([torch.zeros_like(committed), ancestor_bitmask(parents)], 1)
    order = torch.arange(queries)
    return ForwardBatch(
        tokens=torch.zeros(len(lengths), queries, dtype=torch.int64, device=DEVICE),
        positions=(committed + order).to(DEVICE),
        slots=(committed + order).to(DEVICE),
        prefix_lengths=(committed + 1).expand(-1, queries).to(DEVICE),
        ancestors=bits.to(DEVICE),
        tree_starts=committed.squeeze(1).to(DEVICE) + 1,
        num_slots=num_slots,
        num_logits=queries,
    )


def _prefill_batch(rows: int, queries: int, start: int) -> ForwardBatch:
    """A chunk of a prompt, as `prefill` makes it: causal, without a tree."""
    positions = (torch.arange(queries, device=DEVICE) + start).expand(rows, -1)
    return ForwardBatch(
        tokens=positions,
        positions=positions,
        slots=positions,
        prefix_lengths=positions + 1,
        ancestors=torch.zeros_like(positions),
        tree_starts=torch.full((rows,), 10_000, device=DEVICE),
        num_slots=start + queries,
        num_logits=1,
    )


def _states(batch: ForwardBatch, heads: tuple[int, int], head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value; what no token sees holds not-a-number, which must never be touched."""
    generator = torch.Generator().manual_seed(5)
    rows, queries = batch.tokens.shape
    shapes = [(rows, heads[0], queries), (rows, heads[1], batch.num_slots), (rows, heads[1], batch.num_slots)]
    states = [torch.randn(*shape, head_dim, generator=generator).to(DEVICE, dtype) for shape in shapes]
    ends = batch.visible_slots().any(1)
    last = (ends * torch.arange(1, batch.num_slots + 1, device=DEVICE)).amax(1)
    behind = torch.arange(batch.num_slots, device=DEVICE) >= last.unsqueeze(1)
    for state in states[1:]:
        state.masked_fill_(behind[:, None, :, None], torch.nan)
    return states


def _reference(query: Tensor, key: Tensor, value: Tensor, batch: ForwardBatch, softcap: float | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    wide = [key.double().nan_to_num().repeat_interleave(groups, 1), value.double().nan_to_num()]
    scores = query.double() @ wide[0].transpose(-1, -2) * 0.3
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~batch.visible_slots().unsqueeze(1), -torch.inf)
    return (scores.softmax(-1) @ wide[1].repeat_interleave(groups, 1)).transpose(1, 2)


def _check(
    batch: ForwardBatch,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    *,
    softcap: float | None = None,
    tiling: Tiling | None = None,
) -> None:
    query, key, value = _states(batch, heads, head_dim, dtype)
    output = tree_attention_kernel(query, key, value, batch, scaling=0.3, softcap=softcap, tiling=tiling)
    expected = _reference(query, key, value, batch, softcap)
    assert output.dtype == dtype
    assert output.is_contiguous()
    assert float((output.double() - expected).abs().max()) < TOLERANCES[dtype]


def _case(queries: int, lengths: list[int]) -> ForwardBatch:
    generator = torch.Generator().manual_seed(queries)
    return _batch(lengths, queries, max(lengths) + queries + 70, generator)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (8, 2), (8, 1)], ids=lambda heads: f"group{heads[0] // heads[1]}")
def test_every_head_shape(heads: tuple[int, int], head_dim: int) -> None:
    _check(_case(9, [3, 150, 64]), heads, head_dim, torch.bfloat16)


@pytest.mark.parametrize("queries", [1, 2, 5, 17, 33, 64, 65])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_number_of_queries(queries: int, dtype: torch.dtype) -> None:
    _check(_case(queries, [1, 200, 63]), (6, 2), 64, dtype)


@pytest.mark.parametrize("lengths", [[1], [63, 64, 65], [127, 128, 1], [1000, 2, 511], [5000, 1, 4097]], ids=str)
def test_ragged_lengths(lengths: list[int]) -> None:
    _check(_case(17, lengths), (4, 2), 64, torch.float32)


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 32])
def test_any_number_of_splits_gives_the_same(splits: int) -> None:
    tiling = Tiling(rows=32, slots=64, splits=splits, warps=4)
    _check(_case(9, [700, 5, 64]), (4, 2), 64, torch.float32, tiling=tiling)


@pytest.mark.parametrize("softcap", [5.0, 30.0])
def test_softcapped_scores(softcap: float) -> None:
    _check(_case(9, [100, 7]), (4, 2), 32, torch.float32, softcap=softcap)


def test_more_queries_than_a_tile_holds() -> None:
    _check(_prefill_batch(2, 90, 0), (4, 1), 32, torch.float32)


def test_a_chunk_of_a_prompt_behind_another() -> None:
    _check(_prefill_batch(2, 40, 33), (4, 2), 64, torch.bfloat16)


@pytest.mark.skipif(DEVICE == "cpu", reason="80,000 programs, which the interpreter would run one by one")
def test_more_rows_than_any_but_the_first_side_of_a_grid_holds() -> None:
    _check(_prefill_batch(40_000, 1, 1), (2, 2), 16, torch.float32)


def test_the_allocated_length_changes_nothing() -> None:
    outputs = []
    for room in (0, 3000):
        batch = _case(9, [100, 40])
        query, key, value = _states(batch, (4, 2), 64, torch.float32)
        key, value = (torch.nn.functional.pad(state, (0, 0, 0, room), value=torch.nan) for state in (key, value))
        outputs.append(tree_attention_kernel(query, key, value, batch, scaling=0.3))
    assert torch.equal(*outputs)
