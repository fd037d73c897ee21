"""Every tested architecture gives its stock logits on ragged trees, and decodes as transformers does."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny_models import ARCHITECTURES, EOS, VOCAB_SIZE, tiny_model
from torch import Tensor

from mtad.config import GenerationOptions
from mtad.decoding import AnswerLimits, Request, RunFacts, build_decoder, generate_pieces
from mtad.drafting.beams import Draw
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import GenerationResult, RowSettings, TokenTree, ancestor_bitmask

# Stock RMS norms and Gemma 2's stock softmax round to float32 inside, which can flip a last bit.
TOLERANCES = {"gemma2": 1e-5}
PARENTS = ((-1, -1, 0, 0, 1, 2, 3), (-1, -1, 1, 0, 0, 4, 3))
DEPTHS = (1, 1, 2, 2, 2, 3, 3)
METHODS = ("mmtad", "mtad", "speculative", "autoregressive", "beam_sampling", "dynamic_beam", "mtjd")


def make_runner(name: str, seed: int = 0, **changes: Any) -> TransformersRunner:
    runner = TransformersRunner(tiny_model(name, seed=seed, **changes))
    runner.attach()
    return runner


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def make_tree(seed: int = 1) -> TokenTree:
    generator = torch.Generator().manual_seed(seed)
    parents = torch.tensor(PARENTS)
    tokens = torch.randint(3, VOCAB_SIZE, parents.shape, generator=generator)
    return TokenTree(
        tokens=tokens,
        parents=parents,
        depths=torch.tensor(DEPTHS),
        joint_draft_log_probs=torch.zeros(parents.shape),
        ancestors=ancestor_bitmask(parents),
        winner=torch.tensor([6, 6]),
        valid=torch.ones_like(tokens, dtype=torch.bool),
        carried=torch.zeros_like(tokens, dtype=torch.bool),
    )


def path_tokens(tree: TokenTree, row: int, node: int) -> list[int]:
    tokens: list[int] = []
    while node >= 0:
        tokens.insert(0, int(tree.tokens[row, node]))
        node = int(tree.parents[row, node])
    return tokens


@torch.inference_mode()
def stock_logits(model: Any, token_ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits


def prefill(runner: TransformersRunner, prompts: list[list[int]], capacity: int = 60) -> Tensor:
    """Cache all but the last token of each prompt, which is returned as pending."""
    longest = max(len(prompt) for prompt in prompts)
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    runner.allocate(len(prompts), capacity)
    runner.prefill(padded, lengths - 1)
    return padded.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)


def decode(
    target: TransformersRunner,
    draft: TransformersRunner,
    prompts: list[list[int]],
    options: GenerationOptions,
    max_new_tokens: int = 12,
    first_seed: int = 0,
) -> list[GenerationResult]:
    temperature = 1.0 if options.temperature is None else options.temperature
    decoder = build_decoder(options, target, draft, frozenset({EOS}), temperature=temperature)
    requests = [
        Request(
            row=row,
            prompt=prompt,
            settings=RowSettings(
                seed=first_seed + row, temperature=temperature, top_k=20, top_p=0.95, threshold=options.threshold
            ),
            limits=AnswerLimits(max_new_tokens=max_new_tokens, eos_token_ids=frozenset({EOS})),
        )
        for row, prompt in enumerate(prompts)
    ]
    facts = RunFacts(method=options.method, gamma=decoder.gamma)
    pieces = generate_pieces(decoder, requests, lambda ids: " ".join(map(str, ids)), facts)
    results = {piece.row: piece.result for piece in pieces if piece.result is not None}
    return [results[row] for row in range(len(prompts))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tree_logits_and_kept_cache_equal_the_stock_model(name: str) -> None:
    model, runner = tiny_model(name), make_runner(name)
    tolerance = TOLERANCES.get(name, 1e-9)
    prompts = random_prompts((9, 4))
    tree = make_tree()
    scored = runner.score_tree(prefill(runner, prompts), tree)
    for row, prompt in enumerate(prompts):
        for node in range(-1, tree.num_nodes):
            expected = stock_logits(model, prompt + path_tokens(tree, row, node))[-1]
            torch.testing.assert_close(scored[row, node + 1], expected, rtol=0, atol=tolerance)

    # Rows keep three nodes and one; the next tree must see exactly the kept tokens.
    runner.keep_path(torch.tensor([[0, 2, 5], [1, -1, -1]]), torch.tensor([3, 1]), torch.tensor([True, True]))
    committed = [prompt + path_tokens(tree, row, (5, 1)[row]) for row, prompt in enumerate(prompts)]
    assert runner.lengths.tolist() == [len(tokens) for tokens in committed]
    again = runner.score_tree(torch.tensor([7, 8]), tree)
    fresh = make_runner(name)
    refilled = fresh.score_tree(prefill(fresh, [[*committed[0], 7], [*committed[1], 8]]), tree)
    torch.testing.assert_close(again, refilled, rtol=0, atol=tolerance)
    expected = stock_logits(model, [*committed[1], 8, *path_tokens(tree, 1, 6)])[-1]
    torch.testing.assert_close(again[1, 7], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_decoding_equals_transformers_generate(name: str) -> None:
    model, target, draft = tiny_model(name), make_runner(name), make_runner(name, seed=1)
    prompts = random_prompts((7, 1))
    for method in ("autoregressive", "speculative"):
        results = decode(target, draft, prompts, GenerationOptions(method=method, temperature=0.0))
        for prompt, result in zip(prompts, results, strict=True):
            inputs = torch.tensor([prompt])
            expected = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=12, pad_token_id=0
            )
            assert list(result.token_ids) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reported_log_probs_equal_a_fresh_forward(name: str) -> None:
    model, target, draft = tiny_model(name), make_runner(name), make_runner(name, seed=1)
    prompts = random_prompts((6, 1, 11))
    for method in METHODS:
        for prompt, result in zip(
            prompts, decode(target, draft, prompts, GenerationOptions(method=method, gamma=3)), strict=True
        ):
            logits = stock_logits(model, prompt + list(result.token_ids)[:-1])[len(prompt) - 1 :]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(result.token_ids).unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(
                torch.tensor(result.log_probs, dtype=torch.float64),
                expected,
                rtol=0,
                atol=TOLERANCES.get(name, 1e-8),
            )


BATCH_CASES = [
    *[(method, 0.0, "top") for method in METHODS],
    *[(method, 1.0, "top") for method in METHODS],
    *[
        (method, 1.0, draw)
        for method in ("mmtad", "mtad", "beam_sampling", "dynamic_beam", "mtjd")
        for draw in ("gumbel", "sample")
    ],
]


@pytest.mark.parametrize(("method", "temperature", "draw"), BATCH_CASES)
def test_a_ragged_batch_equals_each_row_alone(method: str, temperature: float, draw: Draw) -> None:
    target, draft = make_runner("llama"), make_runner("llama", seed=1)
    options = GenerationOptions(method=method, gamma=3, temperature=temperature, draw=draw)
    prompts = random_prompts((5, 1, 13, 2))
    together = decode(target, draft, prompts, options)
    for row, prompt in enumerate(prompts):
        [alone] = decode(target, draft, [prompt], options, first_seed=row)
        assert alone.token_ids == together[row].token_ids
        assert alone.accepted_lengths == together[row].accepted_lengths
        assert alone.log_probs == pytest.approx(together[row].log_probs, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_prefill_in_chunks_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(name)
    prompts = random_prompts((11, 1))
    tree = make_tree()
    whole = runner.score_tree(prefill(runner, prompts), tree)
    monkeypatch.setattr("mtad.models.runner.PREFILL_CHUNK", 3)
    chunked = runner.score_tree(prefill(runner, prompts), tree)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("method", ["mmtad", "speculative", "mtjd", "autoregressive"])
def test_an_answer_may_end_at_the_last_position(name: str, method: str) -> None:
    model = tiny_model(name, max_position_embeddings=16)
    target, draft = (make_runner(name, seed=seed, max_position_embeddings=16) for seed in (0, 1))
    assert target.max_positions == 16
    [prompt] = random_prompts((11,))
    for temperature in (0.0, 1.0):
        options = GenerationOptions(method=method, gamma=4, temperature=temperature, threshold=0.01)
        [result] = decode(target, draft, [prompt], options, max_new_tokens=5)
        logits = stock_logits(model, prompt + list(result.token_ids)[:-1])[len(prompt) - 1 :]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(result.token_ids).unsqueeze(1)).squeeze(1)
        assert list(result.log_probs) == pytest.approx(expected.tolist(), abs=1e-8)
