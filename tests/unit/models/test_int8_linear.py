"""Layers with 8-bit weights: what they compute exactly, and what no token may depend on."""

import ctypes
from pathlib import Path

import pytest
import torch
from tests.tiny_models import tiny_model
from torch import Tensor, nn

from mtad.models.int8_linear import GROUP, Int8Linear, quantise_linears, quantise_weight
from mtad.models.kernels.building import KernelBuildError, cpu_kernels, load_kernels

needs_kernels = pytest.mark.skipif(cpu_kernels() is None, reason="no C++ compiler")
SIZES = [(48, 80), (64, 32), (200, 77), (576, 960), (1, 1)]


def linear(size: tuple[int, int] = (200, 77), *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*size, bias=bias, dtype=dtype)


def tokens(count: int, size: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, size)


def exact_product(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """The product of bytes and scales in float64, group by group."""
    weights, scales = quantise_weight(layer.weight)
    padded = nn.functional.pad(inputs, (0, -inputs.shape[-1] % GROUP)).view(len(inputs), -1, GROUP)
    largest = padded.abs().amax(-1, keepdim=True)
    factor = torch.where(largest > 0, 127 / largest, 0)
    kept = (padded * factor).round().double() * (largest / 127).double()
    product: Tensor = kept.flatten(-2)[..., : inputs.shape[-1]] @ weights.double().T * scales.double()
    return product if layer.bias is None else product + layer.bias.detach().double()


@pytest.fixture(params=["native", "haswell", "x86-64"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    try:
        return load_kernels(tmp_path_factory.getbasetemp() / "kernels", architecture=request.param)
    except KernelBuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 5, 6, 7, 17, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_its_bytes(kernels: ctypes.CDLL, size: tuple[int, int], count: int, bias: bool) -> None:
    layer = linear(size, bias=bias)
    inputs = tokens(count, size[0])
    got = Int8Linear(layer, kernels)(inputs)
    expected = exact_product(layer, inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_does_not_depend_on_its_neighbours(kernels: ctypes.CDLL, threads: int) -> None:
    layer = Int8Linear(linear(), kernels)
    inputs = tokens(17, 200)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = layer(inputs)
        alone = torch.cat([layer(inputs[index : index + 1]) for index in range(17)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


def test_a_token_of_zeros_gives_the_bias(kernels: ctypes.CDLL) -> None:
    plain = linear()
    inputs = tokens(3, 200)
    inputs[1] = 0
    assert torch.equal(Int8Linear(plain, kernels)(inputs)[1], plain.bias.detach())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_spoils_itself_alone(kernels: ctypes.CDLL, value: float) -> None:
    layer = Int8Linear(linear(), kernels)
    inputs = tokens(3, 200)
    clean = layer(inputs)
    inputs[1, 150] = value
    got = layer(inputs)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


def test_tokens_too_small_to_invert_count_as_zeros(kernels: ctypes.CDLL) -> None:
    layer = Int8Linear(linear(bias=False), kernels)
    assert layer(torch.full((1, 200), 1e-38)).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(200,), (2, 3, 200)])
def test_the_output_has_the_dtype_and_shape_of_the_input(
    kernels: ctypes.CDLL, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    layer = linear(dtype=dtype)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = Int8Linear(layer, kernels)(inputs)
    assert got.dtype == dtype
    assert got.shape == (*shape[:-1], 77)
    torch.testing.assert_close(got, layer(inputs).detach(), rtol=0.05, atol=0.03)


def test_a_row_of_zero_weights_stays_zero(kernels: ctypes.CDLL) -> None:
    plain = linear(bias=False)
    with torch.no_grad():
        plain.weight[3] = 0
    got = Int8Linear(plain, kernels)(tokens(2, 200))
    assert got[:, 3].eq(0).all()
    assert got[:, 4].ne(0).all()


@needs_kernels
@pytest.mark.parametrize("count", [1, 17])
def test_without_kernels_the_weights_alone_are_bytes(count: int) -> None:
    plain = linear()
    inputs = torch.randn(count, 200, generator=torch.Generator().manual_seed(1))
    weights, scales = quantise_weight(plain.weight)
    expected = inputs @ (weights.float() * scales.unsqueeze(-1)).T + plain.bias.detach()
    got = Int8Linear(plain, None)(inputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    # The kernels round the tokens as well, to one part in 254 of the largest of a group.
    torch.testing.assert_close(Int8Linear(plain, cpu_kernels())(inputs), got, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi3", "gpt_neox"])
def test_a_model_keeps_its_logits(name: str) -> None:
    model = tiny_model(name, dtype=torch.float32)
    token_ids = torch.tensor([[1, 5, 7, 3]])
    with torch.inference_mode():
        before = model(token_ids).logits
        assert quantise_linears(model) > 0
        after = model(token_ids).logits
    # Random weights of this width are far less forgiving than trained ones.
    assert float((after - before).std() / before.std()) < 0.1
    assert not torch.equal(after, before)


def test_no_full_weight_is_left() -> None:
    model = tiny_model("llama", dtype=torch.float32, tie_word_embeddings=True)
    quantise_linears(model)
    left = {name for name, weight in model.named_parameters() if weight.ndim == 2}
    assert left == {"model.embed_tokens.weight"}


def test_layers_that_do_more_than_multiply_stay_as_they_are() -> None:
    class Scaled(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    model = nn.Sequential(Scaled(4, 4), nn.LayerNorm(4), nn.Embedding(3, 4))
    before = list(model)
    assert quantise_linears(model) == 0
    assert list(model) == before


def test_kernels_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu_kernels() is None:
        pytest.skip("no C++ compiler")
    load_kernels(tmp_path)
    (library,) = tmp_path.iterdir()
    monkeypatch.setenv("CXX", "false")
    load_kernels(tmp_path)
    assert list(tmp_path.iterdir()) == [library]


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere")
    with pytest.raises(KernelBuildError, match="nowhere failed: "):
        load_kernels(tmp_path)


def test_no_compiler_is_one_note_and_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MTAD_CACHE", str(tmp_path))
    cpu_kernels.cache_clear()
    try:
        model = nn.Sequential(linear())
        quantise_linears(model)
        assert cpu_kernels() is None
    finally:
        cpu_kernels.cache_clear()
    assert isinstance(model[0], Int8Linear)
    assert model[0].kernels is None
    note = capsys.readouterr().err
    assert note == (
        "mtad: int8 weights are slower than full ones here: no C++ compiler (g++, c++, clang++) is installed; "
        "install one\n"
    )
