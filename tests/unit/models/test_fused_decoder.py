"""The whole decoder as one call: the logits and the cache of the modules, and no row that depends on another."""

from typing import Any

import pytest
import torch
from tests.fused_models import make_runner
from tests.tiny_models import LLAMA_3_ROTATION, VOCAB_SIZE, enliven, tiny_model
from tests.unit.models.test_architectures import decode, make_tree, path_tokens, prefill, random_prompts
from torch import Tensor, nn

from mtad.config import GenerationOptions
from mtad.models.fused_decoder import can_fuse
from mtad.models.int8_linear import quantise_linears
from mtad.models.kernels.building import cpu_kernels
from mtad.models.transformers_runner import TransformersRunner

pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="no C++ compiler")

PROMPTS = random_prompts((9, 4, 23))
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"head_dim": 16}),
    ("llama", {"head_dim": 64, "num_key_value_heads": 1}),
    ("llama", {"head_dim": 16, "num_key_value_heads": 4, "tie_word_embeddings": True, "hidden_size": 72}),
    ("llama", {"head_dim": 16, "attention_bias": True, "intermediate_size": 77}),
    ("mistral", {"head_dim": 16, "sliding_window": None}),
    ("qwen2", {"hidden_size": 64}),
    ("qwen3", {"head_dim": 32}),
    ("llama", {"head_dim": 16, "rope_parameters": LLAMA_3_ROTATION}),
]


def int8_model(name: str, dtype: torch.dtype = torch.float32, *, widens: bool = False, **changes: Any) -> Any:
    model = enliven(tiny_model(name, dtype=dtype, **changes))
    if widens:
        model.float()
    quantise_linears(model)
    return model


def module_runner(model: Any) -> TransformersRunner:
    """The same weights, module by module: a hook that does nothing keeps them apart."""
    model.model.norm.register_forward_hook(lambda *arguments: None)
    assert not can_fuse(model)
    return make_runner(model)


def distance(got: Tensor, expected: Tensor) -> float:
    """Root mean square difference in standard deviations."""
    return float((got.float() - expected.float()).square().mean().sqrt() / expected.float().std())


@pytest.mark.parametrize(("name", "changes"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_ragged_trees_score_as_the_modules_do(
    name: str, changes: dict[str, Any], dtype: torch.dtype, threads: int
) -> None:
    fused = make_runner(int8_model(name, dtype, **changes))
    assert can_fuse(fused.model)
    # Modules in bfloat16 round every step of theirs; the kernels round keys and values alone.
    modules = module_runner(int8_model(name, dtype, widens=True, **changes))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tree = make_tree()
        scored = [runner.score_tree(prefill(runner, PROMPTS[:2]), tree) for runner in (fused, modules)]
        for runner in (fused, modules):
            paths = torch.tensor([[0, 2, 5], [1, 2, -1]])
            runner.keep_path(paths, torch.tensor([3, 2]), torch.tensor([True, True]))
        previous, pending = torch.tensor([7, 8]), torch.tensor([9, 3])
        roots = [runner.score_root(previous, pending) for runner in (fused, modules)]
    finally:
        torch.set_num_threads(before)
    # A rounding step of 1/127 may fall the other way in one of them; another order of sums is all that differs.
    tolerance = 0.02 if dtype == torch.float32 else 0.1
    assert distance(*scored) < tolerance
    assert distance(*roots) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tree_scores_as_its_chains(dtype: torch.dtype) -> None:
    runner = make_runner(int8_model("llama", dtype, head_dim=16))
    tree = make_tree()
    scored = runner.score_tree(prefill(runner, PROMPTS[:2]), tree)
    for row in range(2):
        for node in range(tree.num_nodes):
            path = path_tokens(tree, row, node)
            pending = prefill(runner, [[*PROMPTS[row], *path]])
            chain = runner.score_root(torch.tensor([path[-2] if len(path) > 1 else PROMPTS[row][-1]]), pending)
            assert distance(scored[row, 1 + node], chain[0]) < 0.05


@pytest.mark.parametrize("head_dim", [16, 64])
def test_a_row_alone_has_the_very_logits_that_it_has_in_a_batch(head_dim: int) -> None:
    runner = make_runner(int8_model("llama", head_dim=head_dim))
    together = runner.score_root(torch.tensor([4, 5, 6]), prefill(runner, PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        alone = runner.score_root(torch.tensor([4 + row]), prefill(runner, [prompt]))
        assert torch.equal(alone[0], together[row])


def test_rows_in_use_are_read_and_written_alone() -> None:
    runner = make_runner(int8_model("llama", head_dim=16))
    pending = prefill(runner, PROMPTS)
    expected = runner.score_root(torch.tensor([4, 5, 6]), pending)
    assert runner.cache is not None
    kept = [tensor.clone() for tensor in runner.cache.tensors()]
    runner.use_rows(1, 2, 22)
    assert torch.equal(runner.score_root(torch.tensor([5, 6]), pending[1:]), expected[1:])
    for tensor, before in zip(runner.cache.tensors(), kept, strict=True):
        assert torch.equal(tensor[0], before[0])


def test_a_cache_that_moves_is_followed() -> None:
    runner = make_runner(int8_model("llama", head_dim=16))
    pending = prefill(runner, PROMPTS)
    expected = runner.score_root(torch.tensor([4, 5, 6]), pending)
    runner.select_rows(torch.tensor([2, 0]))
    again = runner.score_root(torch.tensor([6, 4]), pending[[2, 0]])
    assert torch.equal(again, expected[[2, 0]])
    runner.release()
    assert torch.equal(runner.score_root(torch.tensor([4, 5, 6]), prefill(runner, PROMPTS, capacity=90)), expected)


def test_first_layers_are_the_shorter_model() -> None:
    model = int8_model("llama", head_dim=16, num_hidden_layers=3)
    target = make_runner(model)
    short = target.first_layers(1)
    short.attach()
    pending = prefill(short, PROMPTS)
    full = target.score_root(torch.tensor([4, 5, 6]), prefill(target, PROMPTS))
    scored = short.score_root(torch.tensor([4, 5, 6]), pending)
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    alone = make_runner(model)
    assert torch.equal(alone.score_root(torch.tensor([4, 5, 6]), prefill(alone, PROMPTS)), scored)
    assert not torch.equal(scored, full)


def test_leading_logits_alone_are_computed() -> None:
    model = int8_model("llama", head_dim=16)
    whole, cut = make_runner(model), make_runner(model, vocab_size=40)
    expected = whole.score_tree(prefill(whole, PROMPTS[:2]), make_tree())
    got = cut.score_tree(prefill(cut, PROMPTS[:2]), make_tree())
    assert expected.shape[-1] == VOCAB_SIZE
    assert torch.equal(got, expected[..., :40])


def test_a_token_that_is_not_finite_is_not_hidden() -> None:
    model = int8_model("llama", head_dim=16, tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    runner = make_runner(model)
    prefill(runner, PROMPTS[:2])
    scored = runner.score_root(torch.tensor([4, 5]), torch.tensor([7, 8]))
    assert scored[0].isnan().all()
    assert scored[1].isfinite().all()


@pytest.mark.parametrize("method", ["mmtad", "mtad", "speculative", "autoregressive", "beam_sampling"])
def test_methods_decode_a_batch_as_row_by_row(method: str) -> None:
    target = make_runner(int8_model("llama", head_dim=16))
    draft = make_runner(int8_model("llama", head_dim=16, seed=1))
    options = GenerationOptions(method=method, gamma=3, beam_width=2)
    together = decode(target, draft, PROMPTS, options)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = decode(target, draft, [prompt], options, first_seed=row)
        assert alone.token_ids == together[row].token_ids


def test_what_the_kernels_do_not_know_runs_module_by_module() -> None:
    narrow = int8_model("llama")
    assert narrow.model.layers[0].self_attn.head_dim == 8
    gelu = int8_model("llama", head_dim=16, hidden_act="gelu")
    gemma = int8_model("gemma")
    full = tiny_model("llama", head_dim=16, dtype=torch.float32)
    partly = tiny_model("llama", head_dim=16, dtype=torch.float32)
    quantise_linears(partly.model.layers[0])
    plain = tiny_model("llama", head_dim=16, dtype=torch.float32)
    quantise_linears(plain)
    plain.model.layers[0].mlp.down_proj = nn.Linear(48, 32)
    assert [can_fuse(model) for model in (narrow, gelu, gemma, full, partly, plain)] == [False] * 6
