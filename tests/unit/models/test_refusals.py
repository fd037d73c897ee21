"""What cannot be served is refused by name, before a wrong token can come out."""

from typing import Any

import pytest
import torch
import transformers
from tests.tiny_models import tiny_config, tiny_model
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from mtad.errors import CapacityError, UnsupportedModelError
from mtad.models.architecture import check_architecture, longest_sequence
from mtad.models.probe import check_tree_logits
from mtad.models.transformers_runner import TransformersRunner

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(config: Any, attention: str = "eager") -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float64, attn_implementation=attention
        )
    return model.eval()


@pytest.mark.parametrize(
    ("config_name", "settings", "reason"),
    [
        ("BartConfig", {}, "encoder-decoder"),
        ("T5Config", {}, "encoder-decoder"),
        ("MambaConfig", {}, "state-space"),
        ("BambaConfig", {}, "state-space"),
        ("Qwen3NextConfig", {}, "state-space|linear_attention"),
        ("BloomConfig", {}, "attention interface"),
        ("MptConfig", {}, "attention interface"),
        ("FalconConfig", {"alibi": True}, "ALiBi"),
    ],
)
def test_unsuitable_architectures_are_refused_from_their_config(
    config_name: str, settings: dict[str, Any], reason: str
) -> None:
    config = getattr(transformers, config_name)(**settings)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), type(config))
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        check_architecture(model_class, config)
    assert config.model_type in str(caught.value)


def test_attention_sinks_are_refused_by_the_probe() -> None:
    settings = SMALL | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64}
    runner = TransformersRunner(build(transformers.GptOssConfig(**settings)))
    with pytest.raises(UnsupportedModelError, match="attention sinks"):
        check_tree_logits(runner)
    assert runner.config._attn_implementation == "eager"


def test_a_bidirectional_encoder_is_refused_by_the_probe() -> None:
    settings = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "head_dim")}
    runner = TransformersRunner(build(transformers.BertConfig(**settings, is_decoder=False)))
    with pytest.raises(UnsupportedModelError, match=r"BertLMHeadModel .* differ"):
        check_tree_logits(runner)


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_probe_passes_a_model_that_fits_and_restores_it(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name, dtype=dtype)
    before = model.config._attn_implementation
    check_tree_logits(TransformersRunner(model))
    assert model.config._attn_implementation == before


def test_a_window_smaller_than_the_sequence_is_a_capacity_error() -> None:
    runner = TransformersRunner(tiny_model("mistral", sliding_window=16))
    runner.allocate(1, 15)
    with pytest.raises(CapacityError, match="window of 16 tokens"):
        runner.allocate(1, 16)


def test_a_captured_cache_takes_no_more_slots_than_the_window_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersRunner, "can_be_captured", True)
    runner = TransformersRunner(tiny_model("mistral", sliding_window=16))
    runner.allocate(1, 9)
    assert runner.num_slots == 16
    with pytest.raises(CapacityError, match="window of 16 tokens"):
        runner.allocate(1, 16)


def test_rotary_embeddings_that_switch_with_length_stop_at_the_switch() -> None:
    factors = [1.0] * 4
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 32,
    }
    config = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    assert longest_sequence(config) == 32
