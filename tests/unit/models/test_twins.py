"""Cost twins: the same function at another size."""

from dataclasses import replace

import pytest
import torch
from tests.tiny_models import VOCAB_SIZE, tiny_model

from mtad.config import ModelOptions
from mtad.errors import ConfigError, UnsupportedModelError
from mtad.models.int8_linear import quantise_linears
from mtad.models.loading import load_models
from mtad.models.traffic import call_traffic
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.twins import SHAPES, TwinShape, enlarge, find_shape

BASE = TwinShape(
    hidden_size=56,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=16,
    intermediate_size=80,
    vocab_size=70,
    tie_word_embeddings=False,
)
TOKENS = torch.tensor([[1, 5, 7, 3, 44, 9, 60, 2]])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 8},
        {"head_dim": 24},
        {"num_attention_heads": 4, "num_key_value_heads": 4},
        {"num_attention_heads": 16, "num_key_value_heads": 2},
        {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 8},
        {"vocab_size": 50},
        {"num_hidden_layers": 9},
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_a_twin_gives_the_same_logits(changes: dict[str, int], ties: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=ties)
    shape = replace(BASE, tie_word_embeddings=ties, **changes)
    twin = enlarge(model, shape, "a shape")
    with torch.inference_mode():
        expected, found = model(TOKENS).logits, twin(TOKENS).logits
    assert found.shape[-1] == max(shape.vocab_size, VOCAB_SIZE)
    # The norms of the model compute in float32.
    torch.testing.assert_close(found[..., :VOCAB_SIZE], expected, rtol=1e-3, atol=1e-5)
    sizes = {name: getattr(twin.config, name) for name in ("hidden_size", "num_hidden_layers", "head_dim")}
    assert sizes == {name: getattr(shape, name) for name in sizes}


def test_a_twin_has_the_weights_of_its_size_and_few_of_them_are_zero() -> None:
    twin = enlarge(tiny_model("llama"), BASE, "a shape")
    layer = twin.model.layers[0]
    assert layer.self_attn.q_proj.weight.shape == (6 * 16, 56)
    assert layer.mlp.gate_proj.weight.shape == (80, 56)
    assert (layer.mlp.gate_proj.weight == 0).sum() == 0
    assert all(torch.isfinite(weight).all() for weight in twin.parameters())


def test_a_runner_cuts_the_extra_logits_off() -> None:
    model = tiny_model("llama")
    runner = TransformersRunner(enlarge(model, BASE, "a shape"), vocab_size=VOCAB_SIZE)
    assert runner.vocab_size == VOCAB_SIZE


def test_the_model_itself_is_left_alone() -> None:
    model = tiny_model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    epsilon = model.config.rms_norm_eps
    enlarge(model, BASE, "a shape")
    assert model.config.rms_norm_eps == epsilon
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 16}, "a shape has hidden_size 16, the model 32"),
        ({"num_hidden_layers": 1}, "a shape has num_hidden_layers 1, the model 2"),
        ({"head_dim": 12}, "heads do not fit"),
        ({"num_attention_heads": 1, "num_key_value_heads": 1}, "heads do not fit"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        enlarge(tiny_model("llama"), replace(BASE, **changes), "a shape")  # type: ignore[arg-type]


def test_other_architectures_and_names_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="needs a Llama model without biases, got gpt2"):
        enlarge(tiny_model("gpt2"), BASE, "a shape")
    with pytest.raises(ConfigError, match="unknown shape 'llama-9'; known shapes are llama-68m"):
        find_shape("llama-9")


def test_known_shapes_divide() -> None:
    for shape in SHAPES.values():
        assert shape.num_attention_heads % shape.num_key_value_heads == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target_shape": "llama-9"}, "unknown shape 'llama-9'"),
        ({"draft_shape": "huge"}, "unknown shape 'huge'"),
        ({"target_shape": "llama-2-7b", "device_map": "auto"}, "a cost twin lies on one device"),
    ],
)
def test_shapes_are_checked_before_anything_is_loaded(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_models(ModelOptions(target="/nowhere/at/all", **changes))  # type: ignore[arg-type]


def test_a_twin_has_the_traffic_of_its_size() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    runner = TransformersRunner(enlarge(model, BASE, "a shape"), vocab_size=VOCAB_SIZE)
    assert call_traffic(runner.model).weight_bytes > 2 * call_traffic(model).weight_bytes


def test_eight_bits_are_a_quarter_of_the_traffic() -> None:
    model, int8 = tiny_model("llama", dtype=torch.float32), tiny_model("llama", dtype=torch.float32)
    quantise_linears(int8)
    norms = sum(weight.nbytes for weight in model.parameters() if weight.ndim == 1)
    plain = call_traffic(model).weight_bytes - norms
    assert call_traffic(int8).weight_bytes - norms == plain / 4
