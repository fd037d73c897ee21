"""A cheap comparison of tree attention with a model's own attention, for architectures no test has seen."""

from typing import Any

import torch
from torch import Tensor

from mtad.models.architecture import unsupported
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures.tree import TokenTree, ancestor_bitmask

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.15}
"""Largest allowed difference of logits, as a share of their own standard deviation.

Stock softmax and norms round to float32 inside, even in a float64 model.
"""

DRIVING_ERRORS = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""What a model raises that keeps its cache or attention in a way of its own."""

_PARENTS = (-1, -1, 0, 0, 1, 3)
_DEPTHS = (1, 1, 2, 2, 2, 3)
_PROMPT_LENGTHS = (6, 3)


@torch.inference_mode()
def check_tree_logits(runner: TransformersRunner) -> None:
    """Score a small random tree on two ragged rows and compare with plain forward passes.

    Args:
        runner: Not yet attached; its cache is overwritten and given back.

    Raises:
        UnsupportedModelError: The logits differ, or the model cannot be driven through the attention interface.
    """
    generator = torch.Generator().manual_seed(0)
    prompts = _random_tokens(runner, (2, max(_PROMPT_LENGTHS)), generator)
    tree = _probe_tree(_random_tokens(runner, (2, len(_PARENTS)), generator))
    lengths = torch.tensor(_PROMPT_LENGTHS, device=runner.device)
    try:
        scored = _score_tree(runner, prompts, lengths, tree)
    except DRIVING_ERRORS as error:
        reason = f"its forward call fails under tree attention ({type(error).__name__}: {error})"
        raise unsupported(type(runner.model), runner.model.config, reason) from None
    worst = max(
        _difference(_stock_logits(runner, prompts[row, :length], tree, row), scored[row])
        for row, length in enumerate(_PROMPT_LENGTHS)
    )
    if not worst <= TOLERANCES.get(scored.dtype, 0.0):
        reason = f"its logits under tree attention differ from its own attention's (by {worst:.2g} deviations)"
        raise unsupported(type(runner.model), runner.model.config, reason)


def _score_tree(runner: TransformersRunner, prompts: Tensor, lengths: Tensor, tree: TokenTree) -> Tensor:
    """Logits of the tree behind the first `lengths` tokens of each row, `[2, 1 + nodes, vocab]`."""
    try:
        with runner.attached():
            runner.allocate(len(prompts), prompts.shape[1] + tree.num_nodes)
            runner.prefill(prompts, lengths - 1)
            pending = prompts.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
            return runner.score_tree(pending, tree)
    finally:
        runner.release()


def _stock_logits(runner: TransformersRunner, prompt: Tensor, tree: TokenTree, row: int) -> Tensor:
    """Logits after the prompt and after every node, one plain forward pass each, `[1 + nodes, vocab]`."""
    logits = []
    for node in range(-1, tree.num_nodes):
        path: list[Any] = []
        step = node
        while step >= 0:
            path.insert(0, tree.tokens[row, step])
            step = int(tree.parents[row, step])
        tokens = torch.cat([prompt, *[token.unsqueeze(0) for token in path]]).unsqueeze(0)
        logits.append(runner.model(input_ids=tokens, use_cache=False).logits[0, -1, : runner.vocab_size])
    return torch.stack(logits).to(runner.device)


def _difference(expected: Tensor, got: Tensor) -> float:
    spread = expected.double().std().clamp(min=1e-30)
    return float((expected.double() - got.double()).abs().max() / spread)


def _random_tokens(runner: TransformersRunner, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(runner.vocab_size, shape, generator=generator).to(runner.device)


def _probe_tree(tokens: Tensor) -> TokenTree:
    parents = torch.tensor(_PARENTS, device=tokens.device).expand_as(tokens)
    return TokenTree(
        tokens=tokens,
        parents=parents,
        depths=torch.tensor(_DEPTHS, device=tokens.device),
        joint_draft_log_probs=torch.zeros_like(tokens, dtype=torch.float32),
        ancestors=ancestor_bitmask(parents),
        winner=torch.full_like(tokens[:, 0], len(_PARENTS) - 1),
        valid=torch.ones_like(tokens, dtype=torch.bool),
        carried=torch.zeros_like(tokens, dtype=torch.bool),
    )
