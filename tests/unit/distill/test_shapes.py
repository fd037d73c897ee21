"""Names of sizes become models of that size."""

import pytest
from tests.tiny_models import tiny_config
from transformers import LlamaForCausalLM

from mtad.distill.shapes import DraftShape
from mtad.errors import ConfigError


@pytest.mark.parametrize("name", ["nano", "small", "base", "16x1", "48x3", "96x2"])
def test_the_parameters_are_counted_as_the_model_has_them(name: str) -> None:
    shape = DraftShape.parse(name)
    model = LlamaForCausalLM(shape.config(tiny_config("llama")))
    counted = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
    assert shape.num_parameters(61) == counted


def test_a_width_without_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 16, got 100x2"):
        DraftShape.parse("100x2")
