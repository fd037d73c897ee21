"""Quantised checkpoints are refused early where their package is missing, and never packed or merged."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_model
from torch import nn

from mtad.errors import ModelLoadError
from mtad.models import packed_linear, quantized
from mtad.models.checkpoints import read_model_config
from mtad.models.packed_linear import pack_linears
from mtad.models.quantized import quantization_method


@pytest.mark.parametrize(
    ("stated", "method"),
    [
        (None, None),
        ({}, None),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        (SimpleNamespace(quant_method=SimpleNamespace(value="awq")), "awq"),
        (SimpleNamespace(), None),
    ],
    ids=str,
)
def test_the_configuration_names_the_method(stated: Any, method: str | None) -> None:
    assert quantization_method(SimpleNamespace(quantization_config=stated)) == method
    assert quantization_method(SimpleNamespace()) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def _quantize(folder: Path, stated: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stated}))


@pytest.mark.parametrize(("method", "package"), [("gptq", "gptqmodel"), ("bitsandbytes", "bitsandbytes")])
def test_a_missing_package_is_named_before_weights_are_read(
    method: str, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quantize(folder, {"quant_method": method, "bits": 4})
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=f"quantised by {method}.*pip install {package}, or name a target"):
        read_model_config(folder, "target")


def test_a_package_that_is_there_lets_it_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _quantize(folder, {"quant_method": "gptq", "bits": 4})
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    assert quantization_method(read_model_config(folder, "target")) == "gptq"


class _Quantized(torch.Tensor):
    """A weight of another class that claims a plain dtype."""


def test_quantised_weights_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "has_packed_kernels", lambda dtype: True)
    layer = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(_Quantized), requires_grad=False)
    assert pack_linears(nn.Sequential(layer)) == 0
