"""A model's first layers are the smaller model they look like, on the same weights."""

from typing import Any

import accelerate
import pytest
import torch
from tests.table_models import random_table
from tests.tiny_engine import tiny_engine
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.unit.models.test_architectures import (
    TOLERANCES,
    make_tree,
    path_tokens,
    prefill,
    random_prompts,
    stock_logits,
)
from transformers import AutoModelForCausalLM

from mtad.errors import ConfigError, UnsupportedModelError
from mtad.models.early_exit import first_layers
from mtad.models.table import TableRunner
from mtad.models.transformers_runner import TransformersRunner

LAYERS = 4
PATHS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers"}


def deep_model(name: str) -> Any:
    return tiny_model(name, n_layer=LAYERS) if name == "gpt2" else tiny_model(name, num_hidden_layers=LAYERS)


def fresh_short_model(model: Any, name: str, count: int) -> Any:
    """A new model of `count` layers with the weights of the first ones, of the norm and of the head."""
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": count, "layer_types": None})
    short: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float64, attn_implementation=model.config._attn_implementation
    )
    wanted = {key: value for key, value in model.state_dict().items() if key in short.state_dict()}
    short.load_state_dict(wanted)
    return short.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("count", [1, 3])
def test_the_logits_are_those_of_a_shorter_model(name: str, count: int) -> None:
    model = deep_model(name)
    short = fresh_short_model(model, name, count)
    target = TransformersRunner(model)
    target.attach()
    runner = target.first_layers(count)
    prompts, tree = random_prompts((9, 4)), make_tree()
    pending = prefill(runner, prompts)
    # The target works on the same layers in between; neither may disturb the other's cache.
    full = target.score_tree(prefill(target, prompts), tree)
    scored = runner.score_tree(pending, tree)
    assert torch.equal(target.score_tree(pending, tree), full)
    assert runner.cache is not None
    assert len(runner.cache.slot_layers) == count
    for row, prompt in enumerate(prompts):
        for node in range(-1, tree.num_nodes):
            expected = stock_logits(short, prompt + path_tokens(tree, row, node))[-1]
            torch.testing.assert_close(scored[row, node + 1], expected, rtol=0, atol=TOLERANCES.get(name, 1e-9))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_weights_are_shared_and_the_model_stays_whole(name: str) -> None:
    model = deep_model(name)
    before = stock_logits(model, [3, 4, 5])
    short = first_layers(model, 2)
    own = dict(model.named_parameters())
    assert all(weight is own[key] for key, weight in short.named_parameters())
    path = PATHS.get(name, "model.layers")
    assert [len(item.get_submodule(path)) for item in (short, model)] == [2, LAYERS]
    assert [item.config.num_hidden_layers for item in (short, model)] == [2, LAYERS]
    assert model.base_model.config.num_hidden_layers == LAYERS
    assert torch.equal(stock_logits(model, [3, 4, 5]), before)
    assert not torch.equal(stock_logits(short, [3, 4, 5]), before)
    assert torch.equal(stock_logits(first_layers(model, LAYERS), [3, 4, 5]), before)


def test_layers_spread_by_hooks_still_exit_early() -> None:
    model = deep_model("llama")
    expected = stock_logits(first_layers(model, 2), [3, 4, 5])
    spread = accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert torch.equal(stock_logits(first_layers(spread, 2), [3, 4, 5]), expected)


def test_an_architecture_without_such_layers_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 3
    with pytest.raises(
        UnsupportedModelError, match=r"LlamaForCausalLM \(llama\) cannot exit early: got 0 lists of its 3"
    ):
        first_layers(model, 1)


def test_the_first_layers_of_a_table_see_the_last_tokens() -> None:
    table = random_table(1, 4, order=3)
    runner = TableRunner(table)
    assert runner.num_layers == 3
    assert torch.equal(runner.first_layers(3).table, table)
    torch.testing.assert_close(runner.first_layers(1).table, table.mean((0, 1)))


@pytest.mark.parametrize("changes", [{"drafter": "early_exit", "verifier": "joint"}, {}, {"method": "mtad"}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_layers_draft_what_the_target_accepts(changes: dict[str, Any], temperature: float) -> None:
    engine = tiny_engine(has_draft=False)
    prompts = ["tell me", "a", "why is the sky blue"]
    settings: dict[str, Any] = {"gamma": 3, "max_new_tokens": 16, "ignore_eos": True, "temperature": temperature}
    for result in engine.generate(prompts, exit_layers=2, **settings, **changes):
        assert result.accepted_lengths == (3, 3, 3, 3)
        assert result.joint_log_ratios == pytest.approx([0] * 4, abs=1e-6)
        assert result.config["exit_layers"] == 2


@pytest.mark.parametrize("changes", [{"drafter": "early_exit", "verifier": "block"}, {"exit_layers": 1}])
def test_a_row_of_a_ragged_batch_is_the_row_alone(changes: dict[str, Any]) -> None:
    engine = tiny_engine(has_draft=False)
    prompts = ["tell me", "a", "why is the sky blue", "the sea"]
    settings = {"max_new_tokens": 20, "threshold": 0.1, "seed": 3, **changes}
    together = engine.generate(prompts, **settings)
    assert {result.config["exit_layers"] for result in together} == {1}
    assert sum(sum(result.accepted_lengths) for result in together) > 0
    for prompt, result in zip(prompts, together, strict=True):
        alone = engine.generate(prompt, **settings)
        assert (alone.token_ids, alone.accepted_lengths) == (result.token_ids, result.accepted_lengths)


def test_more_layers_than_the_target_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^exit_layers must be <= 2, the layers of the target, got 3; lower it$"):
        tiny_engine().generate("a", exit_layers=3)
