"""What joint decoding promises, held against real runs of the default pair."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mtad import Engine, GenerationResult
from mtad.models.pairs import PairPaths
from mtad.models.transformers_runner import TransformersRunner

pytestmark = pytest.mark.integration

PROMPTS = ("What is the capital of France?", "Write one sentence about a cat.", "Count from one to ten in words.")
JOINT_METHODS = ("mtad", "mmtad")
THRESHOLD = 0.5
GAMMA = 4


@pytest.fixture(scope="module")
def plain_model(default_pair_paths: PairPaths) -> Any:
    return AutoModelForCausalLM.from_pretrained(default_pair_paths.target, dtype=torch.float32)


@pytest.fixture(scope="module")
def runs(engine: Engine) -> dict[str, list[GenerationResult]]:
    settings: dict[str, Any] = {"max_new_tokens": 16, "gamma": GAMMA, "threshold": THRESHOLD, "seed": 1}
    return {method: engine.generate(PROMPTS, method=method, **settings) for method in JOINT_METHODS}


@pytest.mark.parametrize("method", JOINT_METHODS)
def test_every_kept_block_passes_the_joint_rule(method: str, runs: dict[str, list[GenerationResult]]) -> None:
    blocks = [
        block for result in runs[method] for block in zip(result.accepted_lengths, result.joint_log_ratios, strict=True)
    ]
    kept = [ratio for length, ratio in blocks if length > 0]
    assert len(kept) >= 6
    assert min(kept) > math.log(THRESHOLD)
    assert all(ratio == 0 for length, ratio in blocks if length == 0)


def test_the_tree_emits_several_tokens_per_call(runs: dict[str, list[GenerationResult]]) -> None:
    results = runs["mmtad"]
    num_tokens = sum(result.stats.num_tokens for result in results)
    assert num_tokens / sum(result.stats.target_calls for result in results) > 1.3
    for result in results:
        shares = result.stats.acceptance_by_depth
        assert shares[0] > 0.2
        assert list(shares) == sorted(shares, reverse=True)
        assert result.provenance.count("drafted") == sum(result.accepted_lengths) > 0


@pytest.mark.parametrize("method", JOINT_METHODS)
def test_log_probs_are_those_of_the_plain_model(
    method: str, engine: Engine, runs: dict[str, list[GenerationResult]], plain_model: Any
) -> None:
    for prompt, result in zip(PROMPTS, runs[method], strict=True):
        messages = [{"role": "user", "content": prompt}]
        prompt_ids = engine.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        sequence = torch.tensor([[*prompt_ids, *result.token_ids]])
        with torch.no_grad():
            log_probs = plain_model(sequence).logits.log_softmax(-1)[0, len(prompt_ids) - 1 : -1]
        expected = log_probs.gather(1, sequence[0, len(prompt_ids) :, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(result.log_probs), expected, atol=2e-3, rtol=0)
        assert result.stats.perplexity == pytest.approx(float(expected.mean().neg().exp()), rel=1e-3)


@pytest.mark.parametrize("method", JOINT_METHODS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_is_the_target_is_always_kept(method: str, temperature: float, engine: Engine) -> None:
    # Both runners drive one model, each with a cache of its own.
    twin = Engine(replace(engine.models, draft=TransformersRunner(engine.models.target.model)))
    result = twin.generate(
        PROMPTS[2],
        method=method,
        temperature=temperature,
        threshold=0.99,
        gamma=GAMMA,
        beam_width=2,
        max_new_tokens=2 * (GAMMA + 1),
        ignore_eos=True,
    )
    assert result.accepted_lengths == (GAMMA, GAMMA)
    assert result.stats.tokens_per_call == GAMMA + 1
    assert result.stats.acceptance_by_depth == (1.0,) * GAMMA


@pytest.mark.parametrize("changes", [{"drafter": "prompt_lookup"}, {"drafter": "early_exit", "exit_layers": 29}])
def test_drafts_without_a_second_model_leave_the_greedy_answer_as_it_is(
    changes: dict[str, Any], engine: Engine
) -> None:
    prompt = "Copy this line twice: apples from the garden, oranges from the market, bread from the bakery."
    settings: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 28, "gamma": GAMMA}
    plain = engine.generate(prompt, method="autoregressive", **settings)
    result = engine.generate(prompt, verifier="token_rejection", **settings, **changes)
    assert result.token_ids == plain.token_ids
    assert result.stats.tokens_per_call > 1.3


def test_a_batch_of_different_lengths_answers_as_its_prompts_do_alone(default_pair_paths: PairPaths) -> None:
    engine = Engine.from_pretrained(
        str(default_pair_paths.target), draft=str(default_pair_paths.draft), device="cpu", dtype="float64"
    )
    prompts = ["Hi", "What is the capital of France, and which river flows through it?"]
    settings: dict[str, Any] = {"max_new_tokens": 6, "gamma": 3, "beam_width": 2, "seed": 5}
    together = engine.generate(prompts, **settings)
    for prompt, batched in zip(prompts, together, strict=True):
        alone = engine.generate(prompt, **settings)
        assert batched.token_ids == alone.token_ids
        assert batched.accepted_lengths == alone.accepted_lengths
        assert batched.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
