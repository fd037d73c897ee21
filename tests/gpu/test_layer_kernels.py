"""The kernels between a layer's products against plain torch in float64.

Runs on a CUDA device, or anywhere in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/gpu/test_layer_kernels.py`.
"""

import os
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from mtad.models.kernels import product_calls
from mtad.models.kernels.layer_calls import Beginning, HeadNorms, Norm, Rotation, add_norm, begin, gate, move, rotate

HAS_CUDA = torch.cuda.is_available()
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
DEVICE = "cuda" if HAS_CUDA and not IS_INTERPRETED else "cpu"
# The interpreter cuts bfloat16 off instead of rounding it.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}
EPSILON = 1e-5

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA and not IS_INTERPRETED, reason="neither a CUDA device nor Triton's interpreter"),
]


def name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=name_dtype)
# On a device torch multiplies float32.
OWN_DTYPES = [dtype for dtype in TOLERANCES if DEVICE == "cpu" or dtype.itemsize == 2]
own_dtypes = pytest.mark.parametrize("dtype", OWN_DTYPES, ids=name_dtype)


def draws(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    tolerance = TOLERANCES[got.dtype]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def normed(values: Tensor, weight: Tensor) -> Tensor:
    wide = values.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double()


@every_dtype
@pytest.mark.parametrize(("hidden", "half"), [(32, 8), (72, 20), (2048, 64)])
def test_tokens_begin_as_embeddings_and_angles(hidden: int, half: int, dtype: torch.dtype) -> None:
    tokens = torch.tensor([[3, 0, 10], [7, 7, 1]], device=DEVICE)
    positions = torch.tensor([[0, 1, 511], [9, 8191, 131071]], device=DEVICE)
    embedding, weight = draws(11, hidden, dtype=dtype), draws(hidden, dtype=dtype, seed=1)
    frequencies = 500000.0 ** -(torch.arange(half, device=DEVICE).float() / half)
    rotation = Rotation(frequencies=frequencies, scaling=1.5)
    found = begin(tokens, positions, embedding, Norm(weight=weight, epsilon=EPSILON), rotation)
    # The model's own angles are rounded to float32 as well.
    angles = (positions.float().unsqueeze(-1) * frequencies).double()
    assert torch.equal(found.residual, embedding[tokens])
    assert_near(found.normed, normed(embedding[tokens], weight))
    assert_near(found.cosines, angles.cos() * 1.5)
    assert_near(found.sines, angles.sin() * 1.5)


@every_dtype
@pytest.mark.parametrize("num_kept", [1, 2, 5])
@pytest.mark.parametrize("hidden", [32, 72, 960])
def test_the_last_tokens_are_added_and_normalised(hidden: int, num_kept: int, dtype: torch.dtype) -> None:
    before, update, weight = (draws(3, 5, hidden, dtype=dtype, seed=seed) for seed in range(3))
    weight = weight[0, 0]
    residual = before.clone()
    found = add_norm(residual, update.unsqueeze(0), Norm(weight=weight, epsilon=EPSILON), num_kept)
    total = before.double() + update.double()
    assert_near(residual[:, -num_kept:], total[:, -num_kept:])
    assert torch.equal(residual[:, :-num_kept], before[:, :-num_kept])
    assert_near(found, normed(total[:, -num_kept:], weight))


@every_dtype
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("heads", "key_heads", "head_dim"), [(4, 2, 16), (3, 3, 40), (15, 5, 64), (32, 8, 128)])
def test_queries_are_rotated_and_keys_find_their_slots(
    heads: int, key_heads: int, head_dim: int, has_norms: bool, dtype: torch.dtype
) -> None:
    rows, queries, slots = 2, 3, 9
    joint = draws(rows, queries, heads + 2 * key_heads, head_dim, dtype=dtype)
    angles = draws(rows, queries, head_dim // 2, seed=1)
    beginning = Beginning(residual=joint, normed=joint, cosines=angles.cos().to(dtype), sines=angles.sin().to(dtype))
    weights = draws(2, head_dim, dtype=dtype, seed=2) if has_norms else None
    norms = None if weights is None else HeadNorms(query=weights[0], key=weights[1], epsilon=EPSILON)
    stack = draws(2, rows + 1, key_heads, slots, head_dim, dtype=dtype, seed=3)
    before = stack.clone()
    places = torch.tensor([[4, 0, 8], [1, 2, 3]], device=DEVICE)
    query = rotate(joint.flatten(2).unsqueeze(0), beginning, places, stack[0, 1:], stack[1, 1:], norms)

    wide = joint.double()
    states = [wide[:, :, :heads], wide[:, :, heads : heads + key_heads], wide[:, :, heads + key_heads :]]
    for index, weight in enumerate([] if weights is None else weights):
        states[index] = normed(states[index], weight)
    cosines, sines = (
        torch.cat([half, half], -1).double().unsqueeze(2) for half in (beginning.cosines, beginning.sines)
    )
    for index in range(2):
        first, second = states[index].chunk(2, -1)
        states[index] = states[index] * cosines + torch.cat([-second, first], -1) * sines
    assert_near(query, states[0])
    expected = before.double()
    for row in range(rows):
        expected[0, row + 1, :, places[row]] = states[1][row].transpose(0, 1)
        expected[1, row + 1, :, places[row]] = states[2][row].transpose(0, 1)
    assert_near(stack, expected)
    assert torch.equal(stack[:, 0], before[:, 0])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@every_dtype
@pytest.mark.parametrize("neurons", [48, 77, 1024, 2500])
def test_gates_open_their_neurons(neurons: int, dtype: torch.dtype) -> None:
    joint = draws(2, 3, 2 * neurons, dtype=dtype)
    joint[0, 0, :4] = torch.tensor([-200.0, 200.0, 0.0, -20.0], device=DEVICE)
    opened, up = joint.double().chunk(2, -1)
    assert_near(gate(joint.unsqueeze(0), dtype), torch.nn.functional.silu(opened) * up)


@pytest.mark.parametrize("head_dim", [16, 80, 128])
@pytest.mark.parametrize("count", [1, 3, 33])
def test_slots_move_in_every_layer_as_if_all_were_read_first(count: int, head_dim: int) -> None:
    stack = draws(3, 2, 4, 2, 40, head_dim, dtype=torch.bfloat16)
    before = stack.clone()
    # Chains, such as 2 to 1 and 3 to 2, and a row that stays as it is.
    sources = torch.stack([torch.arange(count) + 2, torch.arange(count) + 5, torch.arange(count) + 1])
    targets = torch.stack([torch.arange(count) + 1, torch.arange(count).flip(0) + 6, torch.arange(count) + 1])
    move(stack[:, :, 1:], sources.to(DEVICE), targets.to(DEVICE))
    expected = before.clone()
    for row in range(3):
        expected[:, :, row + 1, :, targets[row]] = before[:, :, row + 1, :, sources[row]]
    assert torch.equal(stack, expected)


@pytest.fixture
def own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of up to 64 tokens by our own kernels."""
    monkeypatch.setattr(product_calls, "MAX_TOKENS", 64)


@own_dtypes
@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"), [(1, 64, 128), (5, 77, 384), (17, 64, 2048), (33, 64, 2176), (64, 8, 1152)]
)
def test_splits_of_a_product_add_up(tokens: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    states, weight = draws(1, tokens, inputs, dtype=dtype), draws(outputs, inputs, dtype=dtype, seed=1) / inputs**0.5
    bias = draws(outputs, dtype=dtype, seed=2)
    for added in (None, bias):
        product = product_calls.multiply(states, weight, added)
        if inputs > 2000:
            assert len(product) > 1
            assert product.dtype == torch.float32
        expected = states.double() @ weight.double().T + (0 if added is None else added.double())
        assert_near(product.sum(0, dtype=torch.float32).to(dtype), expected)


@own_dtypes
@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize(("tokens", "neurons"), [(1, 64), (17, 96), (40, 200)])
def test_a_product_opens_its_gates(tokens: int, neurons: int, dtype: torch.dtype) -> None:
    states, weight = draws(1, tokens, 256, dtype=dtype), draws(2 * neurons, 256, dtype=dtype, seed=1) / 16
    opened, up = (states.double() @ weight.double().T).chunk(2, -1)
    found = product_calls.multiply_gated(states, weight, None)
    assert found is not None
    assert_near(found, torch.nn.functional.silu(opened) * up)


@pytest.mark.usefixtures("own_products")
def test_products_that_are_not_ours_are_those_of_torch() -> None:
    dtype = torch.float32 if DEVICE == "cuda" else torch.bfloat16
    # The interpreter multiplies every dtype, so there the inputs are no multiple of a tile.
    states, weight = (draws(*shape, 128 if DEVICE == "cuda" else 120, dtype=dtype) for shape in ((1, 3), (64,)))
    assert product_calls.multiply_gated(states, weight, None) is None
    product = product_calls.multiply(states, weight, None)
    assert torch.equal(product, torch.nn.functional.linear(states, weight).unsqueeze(0))


def test_splits_of_a_product_cover_its_inputs() -> None:
    for outputs in (64, 3072, 4096, 28672):
        for inputs in (128, 768, 2048, 4096, 14336):
            splits = product_calls.Splits.choose(outputs=outputs, inputs=inputs, processors=132)
            assert (splits.count - 1) * splits.tiles * 128 < inputs <= splits.count * splits.tiles * 128
            assert splits.count == 1 or splits.tiles >= 4


@every_dtype
def test_consumers_add_the_splits_up(dtype: torch.dtype) -> None:
    parts = draws(3, 1, 2, 256)
    whole = parts.sum(0).to(dtype)
    assert_near(gate(parts, dtype), gate(whole.unsqueeze(0), dtype).double())
    residual, weight = draws(1, 2, 256, dtype=dtype, seed=1), draws(256, dtype=dtype, seed=2)
    norm = Norm(weight=weight, epsilon=EPSILON)
    found = add_norm(residual.clone(), parts, norm, 2)
    assert_near(found, add_norm(residual.clone(), whole.unsqueeze(0), norm, 2).double())
    stacks = [torch.zeros(2, 1, 4, 5, 16, device=DEVICE, dtype=dtype) for _ in range(2)]
    half = torch.full((1, 2, 8), 0.5, device=DEVICE, dtype=dtype)
    beginning = Beginning(residual=residual, normed=residual, cosines=half, sines=half)
    slots = torch.tensor([[3, 1]], device=DEVICE)
    products = [parts, whole.unsqueeze(0)]
    queries = [
        rotate(joint, beginning, slots, stack[0], stack[1], None) for joint, stack in zip(products, stacks, strict=True)
    ]
    assert_near(queries[0], queries[1].double())
    assert_near(stacks[0], stacks[1].double())
