"""A LoRA adapter is merged exactly, and one that does not fit is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tests.tiny_models import tiny_model
from tests.unit.models.test_loading import save_tokenizer, words

from mtad.config import ModelOptions
from mtad.errors import ModelLoadError
from mtad.models.loading import load_models
from mtad.models.quiet import quiet_libraries


def save_adapter(folder: Path, **changes: Any) -> Any:
    """Write a random LoRA for the tiny Llama; returns the base model with the adapter still apart."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with quiet_libraries():
        adapted: Any = get_peft_model(tiny_model("llama", dtype=torch.float32, **changes), config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    save_tokenizer(folder, words())
    return folder


def load(target: Path, adapter: Path | str, dtype: str = "float32") -> Any:
    return load_models(ModelOptions(target=str(target), adapter=str(adapter), device="cpu", dtype=dtype))


@torch.inference_mode()
def test_the_merged_model_equals_the_adapted_one(target: Path, tmp_path: Path) -> None:
    adapted = save_adapter(tmp_path / "adapter").eval()
    tokens = torch.tensor([[5, 9, 3, 40]])
    runner = load(target, tmp_path / "adapter").target
    assert not hasattr(runner.model, "peft_config")
    runner.allocate(1, 8)
    got = runner.score_root(tokens[:, -2], tokens[:, -1])
    expected = adapted(input_ids=tokens[:, -1:]).logits[:, -1]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    base = tiny_model("llama", dtype=torch.float32)(input_ids=tokens[:, -1:]).logits[:, -1]
    assert (got - base).abs().max() > 0.1
    assert load(target, tmp_path / "adapter", "bfloat16").target.model.dtype == torch.bfloat16


@torch.inference_mode()
def test_it_is_merged_before_weights_become_bytes(target: Path, tmp_path: Path) -> None:
    adapted = save_adapter(tmp_path / "adapter").eval()
    tokens = torch.tensor([[5, 9, 3, 40]])
    options = ModelOptions(target=str(target), adapter=str(tmp_path / "adapter"), device="cpu", quantization="int8")
    runner = load_models(options).target
    runner.allocate(1, 8)
    got = runner.score_root(tokens[:, -2], tokens[:, -1])
    expected = adapted(input_ids=tokens[:, -1:]).logits[:, -1]
    base = tiny_model("llama", dtype=torch.float32)(input_ids=tokens[:, -1:]).logits[:, -1]
    # A merge after rounding would leave no linear layer for the adapter to change.
    assert (got - expected).std() < 0.3 * (base - expected).std()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no weights", r"without adapter_model\.safetensors"),
        ("no config", r"without adapter_config\.json"),
        ("truncated", "cannot be used"),
        ("malformed config", "cannot be used"),
        ("no such modules", "cannot be used"),
        ("wrong layers", "does not fit LlamaForCausalLM"),
        ("wrong shapes", "cannot be used"),
        ("prefix tuning", "PREFIX_TUNING"),
        ("nowhere", "no such folder"),
    ],
)
def test_a_broken_adapter_is_one_sentence(target: Path, tmp_path: Path, kind: str, message: str) -> None:
    folder = tmp_path / "adapter"
    changes = {"wrong layers": {"num_hidden_layers": 3}, "wrong shapes": {"intermediate_size": 40}}
    save_adapter(folder, **changes.get(kind, {}))
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if kind == "no weights":
        weights.unlink()
    elif kind == "no config":
        config.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "malformed config":
        config.write_text("{")
    elif kind == "no such modules":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["no_such_layer"]}))
    elif kind == "prefix tuning":
        prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
        with quiet_libraries():
            get_peft_model(tiny_model("llama", dtype=torch.float32), prefix).save_pretrained(str(folder))
    elif kind == "nowhere":
        shutil.rmtree(folder)
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(target, folder)
    assert "\n" not in str(caught.value)
