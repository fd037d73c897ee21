"""The whole decoder in few kernels a layer: the logits and the cache of the model's modules.

Runs on a CUDA device, or anywhere in Triton's interpreter, as `tests/gpu/test_tree_kernel.py` does.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fused_models import (
    DEVICE,
    HAS_CUDA,
    IS_INTERPRETED,
    PROMPTS,
    SHAPES,
    both,
    device_tensor,
    largest_difference,
    lively_model,
    make_runner,
    make_tree,
    prefill,
    scores,
)
from tests.tiny_models import EOS
from torch import nn

from mtad.config import GenerationOptions
from mtad.decoding import AnswerLimits, Request, RunFacts, build_decoder, generate_pieces
from mtad.decoding.assisted import AssistedDecoder
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.triton_decoder import can_fuse_layers
from mtad.structures import RowSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA and not IS_INTERPRETED, reason="neither a CUDA device nor Triton's interpreter"),
]
needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")


@pytest.mark.parametrize("shape", SHAPES)
def test_trees_roots_and_levels_score_as_the_modules_do(shape: str) -> None:
    name, changes = SHAPES[shape]
    fused, modules = both(name, **changes)
    assert largest_difference(scores(fused), scores(modules)) < 5e-4
    assert fused.cache is not None
    assert modules.cache is not None
    for got, expected in zip(fused.cache.tensors(), modules.cache.tensors(), strict=True):
        torch.testing.assert_close(got[:, :, :-1], expected[:, :, :-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_own_products_score_as_the_modules_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value in (("MAX_TOKENS", 16), ("_LEAST_TILES", 1), ("_PROGRAMS_PER_PROCESSOR", 16)):
        monkeypatch.setattr(f"mtad.models.kernels.product_calls.{limit}", value)
    changes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "initializer_range": 0.1,
        "mlp_bias": name == "llama",
    }
    fused, modules = both(name, **changes)
    assert largest_difference(scores(fused), scores(modules)) < 5e-4


@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_rows_in_use_are_read_and_written_alone(shape: str) -> None:
    name, changes = SHAPES[shape]
    runner = make_runner(lively_model(name, **changes))
    pending = prefill(runner, PROMPTS)
    previous = device_tensor([4, 5, 6])
    expected = runner.score_root(previous, pending)
    assert runner.cache is not None
    kept = [tensor.clone() for tensor in runner.cache.tensors()]
    runner.use_rows(1, 2, 22)
    torch.testing.assert_close(runner.score_root(previous[1:], pending[1:]), expected[1:])
    paths = device_tensor([[1, 0], [0, 1]])
    runner.keep_path(paths, device_tensor([1, 2]), device_tensor([True, True]))
    for tensor, before in zip(runner.cache.tensors(), kept, strict=True):
        assert torch.equal(tensor[0], before[0])


@pytest.mark.parametrize("rows", [[2, 0], [2, 0, 0], [1, 1, 0, 2]], ids=str)
def test_chosen_rows_are_followed(rows: list[int]) -> None:
    runner = make_runner(lively_model(head_dim=16))
    pending = prefill(runner, PROMPTS)
    previous = device_tensor([4, 5, 6])
    expected = runner.score_root(previous, pending)
    chosen = device_tensor(rows)
    runner.select_rows(chosen)
    torch.testing.assert_close(runner.score_root(previous[chosen], pending[chosen]), expected[chosen])
    assert runner.cache is not None
    assert runner.cache_bytes == sum(tensor.nbytes for tensor in runner.cache.tensors()) > 0
    runner.release()
    again = runner.score_root(previous, prefill(runner, PROMPTS, capacity=90))
    torch.testing.assert_close(again, expected)


def test_long_prompts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtad.models.runner.PREFILL_CHUNK", 4)
    fused, modules = both("llama", head_dim=16)
    assert largest_difference(scores(fused), scores(modules)) < 5e-4


def test_the_first_layers_are_the_shorter_model() -> None:
    target = make_runner(lively_model(head_dim=16, num_hidden_layers=3))
    before = [weight.data_ptr() for weight in target.model.parameters()]
    short = target.first_layers(2)
    short.attach()
    assert [weight.data_ptr() for weight in target.model.parameters()] == before, "the weights are shared"
    got = scores(short)
    model = lively_model(head_dim=16, num_hidden_layers=3)
    del model.model.layers[2:]
    model.config.num_hidden_layers = 2
    assert largest_difference(got, scores(make_runner(model, fuses=False))) < 5e-4


def test_leading_logits_alone_are_given() -> None:
    whole, cut = make_runner(lively_model(head_dim=16)), make_runner(lively_model(head_dim=16), vocab_size=40)
    expected = whole.score_tree(prefill(whole, PROMPTS), make_tree(3))
    torch.testing.assert_close(cut.score_tree(prefill(cut, PROMPTS), make_tree(3)), expected[..., :40])


def test_weights_move_together_and_stay_the_models_own(tmp_path: Path) -> None:
    model, plain = lively_model("qwen2"), lively_model("qwen2")
    assert not can_fuse_layers(model.double())
    make_runner(model.float())
    attention = model.model.layers[1].self_attn
    joined = {linear.weight.untyped_storage().data_ptr() for linear in (attention.q_proj, attention.k_proj)}
    assert len(joined) == 1
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got, expected)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.model.layers[1].self_attn.k_proj.weight, attention.k_proj.weight.cpu())


def test_what_the_kernels_do_not_know_runs_module_by_module() -> None:
    hooked = lively_model()
    hooked.model.norm.register_forward_hook(lambda *arguments: None)
    replaced = lively_model()
    replaced.model.layers[0].mlp.down_proj = nn.Sequential(replaced.model.layers[0].mlp.down_proj)
    mixed = lively_model()
    mixed.model.layers[1].self_attn.v_proj.to(torch.bfloat16)
    partly_biased = lively_model()
    partly_biased.model.layers[0].self_attn.q_proj.bias = nn.Parameter(torch.zeros(32, device=DEVICE))
    others = [lively_model("gemma"), lively_model(hidden_act="gelu"), lively_model(dtype=torch.float64)]
    unknown = [hooked, replaced, mixed, partly_biased, *others]
    assert [can_fuse_layers(model) for model in unknown] == [False] * len(unknown)


def _decode(
    runners: list[TransformersRunner], options: GenerationOptions, prompts: list[list[int]], max_new_tokens: int
) -> tuple[Any, list[tuple[int, ...]]]:
    decoder = build_decoder(options, runners[0], runners[1], frozenset({EOS}), temperature=1.0)
    limits = AnswerLimits(max_new_tokens=max_new_tokens, eos_token_ids=frozenset({EOS}))
    settings = RowSettings(temperature=1.0, top_k=8, top_p=0.9, threshold=options.threshold)
    requests = [
        Request(row=row, prompt=prompt, settings=replace(settings, seed=row), limits=limits)
        for row, prompt in enumerate(prompts)
    ]
    pieces = generate_pieces(decoder, requests, lambda token_ids: " ".join(map(str, token_ids)), RunFacts(method="x"))
    results = {piece.row: tuple(piece.result.token_ids) for piece in pieces if piece.result is not None}
    return decoder, [results[row] for row in range(len(prompts))]


def test_a_method_decodes_as_over_the_modules() -> None:
    options = GenerationOptions(method="mmtad", gamma=2, beam_width=2)
    answers = []
    for fuses in (True, False):
        runners = [make_runner(lively_model(head_dim=16, seed=seed), fuses=fuses) for seed in (0, 1)]
        answers.append(_decode(runners, options, PROMPTS, 4)[1])
    assert answers[0] == answers[1]


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_widths_score_as_the_modules_do(shape: str, dtype: torch.dtype) -> None:
    name, changes = SHAPES[shape]
    fused, modules = both(name, dtype, **changes)
    exact = make_runner(lively_model(name, dtype, **changes).double())
    found = [scores(runner) for runner in (fused, modules, exact)]
    for got, other, truth in zip(*found, strict=True):
        assert got.dtype == dtype
        errors = [float((logits.double() - truth).square().mean().sqrt() / truth.std()) for logits in (got, other)]
        assert errors[0] < 1.2 * errors[1] + 0.01


@needs_cuda
@pytest.mark.parametrize("method", ["mmtad", "mtad", "speculative", "autoregressive"])
@pytest.mark.parametrize("shape", ["llama", "qwen3"])
# Rows that leave change a captured batch otherwise than one that runs call by call, which 16 bits would show.
@pytest.mark.parametrize(("dtype", "rows"), [(torch.bfloat16, 1), (torch.float32, 3)])
def test_captured_calls_give_the_tokens_of_plain_ones(shape: str, method: str, dtype: torch.dtype, rows: int) -> None:
    name, changes = SHAPES[shape]
    options = GenerationOptions(method=method, ignore_eos=True)
    runners = [make_runner(lively_model(name, dtype, seed=seed, **changes)) for seed in (0, 1)]
    decoder, captured = _decode(runners, options, PROMPTS[:rows], 24)
    assert isinstance(decoder, AssistedDecoder)
    assert decoder.loop is not None
    assert decoder.loop.refusal is None
    assert decoder.loop.num_captures >= 1
    assert captured == _decode(runners, replace(options, cuda_graphs="off"), PROMPTS[:rows], 24)[1]


@needs_cuda
def test_packing_needs_no_second_model() -> None:
    changes: dict[str, Any] = {"num_attention_heads": 16, "head_dim": 256, "num_hidden_layers": 3}
    model = lively_model(dtype=torch.bfloat16, hidden_size=4096, intermediate_size=4096, **changes)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    largest = 2 * 4096 * 4096 * 2
    make_runner(model)
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
    assert torch.cuda.max_memory_allocated() <= before + largest + (1 << 20)
    assert torch.cuda.memory_reserved() <= reserved + largest
