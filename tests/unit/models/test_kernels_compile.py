"""The Triton kernels of decoding compile for a GPU that is not there, launched as the decoder launches them."""

from collections.abc import Iterator

import pytest
import torch
from tests.compiled_kernels import compiled_kernels, needs_compiler
from tests.tiny_models import tiny_model

from mtad.models.cache import SlotCache
from mtad.models.forward import ForwardBatch
from mtad.models.kernels.launch import Tiling, tree_attention_kernel
from mtad.models.kernels.product_calls import multiply, multiply_gated
from mtad.models.triton_decoder import TritonDecoder

pytestmark = needs_compiler


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    with compiled_kernels() as names:
        yield names


def _batch(rows: int, queries: int, num_logits: int) -> ForwardBatch:
    order = torch.arange(queries).expand(rows, -1)
    return ForwardBatch(
        tokens=order,
        positions=order,
        slots=order,
        prefix_lengths=order + 1,
        ancestors=torch.zeros_like(order),
        tree_starts=torch.full((rows,), 40),
        num_slots=40,
        num_logits=num_logits,
    )


@pytest.mark.parametrize(
    ("name", "head_dim", "dtype"),
    [
        ("llama", 64, torch.bfloat16),
        ("llama", 128, torch.bfloat16),
        ("qwen3", 80, torch.bfloat16),
        ("qwen3", 128, torch.float16),
        ("llama", 64, torch.float32),
    ],
)
def test_a_call_of_the_decoder_compiles(name: str, head_dim: int, dtype: torch.dtype, compiled: list[str]) -> None:
    model = tiny_model(name, dtype=dtype, hidden_size=96, intermediate_size=80, head_dim=head_dim)
    decoder = TritonDecoder(model, 61)
    for rows, queries, num_logits in ((1, 1, 1), (1, 2, 1), (3, 17, 17)):
        cache = SlotCache(2, rows, 64)
        batch = _batch(rows, queries, num_logits)
        logits = decoder.forward(batch, batch.positions, cache)
        assert logits.shape == (rows, num_logits, 61)
        decoder.move(cache, batch.slots[:, :3], batch.slots[:, :3])
    assert set(compiled) == {
        "begin_tokens",
        "rotate_and_store",
        "attend_splits",
        "join_splits",
        "add_and_normalise",
        "gate_neurons",
        "move_slots",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 17, 64])
def test_products_of_few_tokens_compile(
    tokens: int, has_bias: bool, dtype: torch.dtype, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtad.models.kernels.product_calls.MAX_TOKENS", 64)
    inputs, weight = torch.zeros(1, tokens, 2048, dtype=dtype), torch.zeros(96, 2048, dtype=dtype)
    bias = weight[:, 0].contiguous() if has_bias else None
    assert multiply(inputs, weight, bias).shape == (2, 1, tokens, 96)
    gated = multiply_gated(inputs, weight, bias)
    assert (gated is None) == has_bias
    assert compiled == ["multiply_rows"] + ["multiply_and_gate"] * (not has_bias)


@pytest.mark.parametrize("queries", [1, 17, 64])
def test_attention_of_large_models_compiles(queries: int, compiled: list[str]) -> None:
    query, states = (torch.zeros(1, heads, queries, 128, dtype=torch.bfloat16) for heads in (32, 8))
    tiling = Tiling.choose(folded=4 * queries, row_bytes=256, key_heads=8, processors=132)
    tree_attention_kernel(query, states, states, _batch(1, queries, 1), scaling=0.1, tiling=tiling)
    assert compiled == ["attend_splits", "join_splits"]
