"""Chi-square tests of the first two tokens that every lossless rule emits with the default pair.

Five rules, two prompts and two tokens make 20 comparisons; each fails a correct rule with odds of about 1e-4 over the
choice of the seeds, which are fixed, so any of them with odds of about 0.002.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.oracles import Array, warp
from torch import Tensor
from transformers import AutoModelForCausalLM

from mtad import Engine
from mtad.config import VERIFIER_NAMES, GenerationOptions
from mtad.decoding import build_decoder
from mtad.models.forward import ForwardBatch
from mtad.models.intersection import VocabularyMap
from mtad.models.pairs import PairPaths
from mtad.models.runner import ModelRunner
from mtad.models.translated_runner import TranslatedRunner
from mtad.structures import RowSettings, TokenTree
from mtad.verification import VERIFIERS, RuleSettings

pytestmark = pytest.mark.integration

PROMPTS = ("Give me advice for my first marathon.", "Write the first line of a novel.")
SETTINGS = RowSettings(temperature=1.0, top_k=10, top_p=0.9)
NUM_SEEDS = 320
ODDS = 1e-4
SMALLEST_EXPECTED = 5
DRAFTS: dict[str, dict[str, Any]] = {
    "exact_match": {"drafter": "chain", "gamma": 2},
    "token_rejection": {"drafter": "chain", "gamma": 2},
    "block": {"drafter": "chain", "gamma": 2},
    "tree_rejection": {"drafter": "branching_tree", "branching": "2,1"},
    "traversal": {"drafter": "branching_tree", "branching": "2,1"},
}


class SharedHistory(ModelRunner):
    """Rows behind one prompt, for one iteration: the prompt is read once, and equal drafts are scored once."""

    def __init__(self, inner: ModelRunner) -> None:
        self.inner = inner
        self.vocab_size, self.device, self.max_positions = inner.vocab_size, inner.device, inner.max_positions

    def prefill(self, token_ids: Tensor, lengths: Tensor, num_shared: int = 0) -> None:
        self.inner.prefill(token_ids[:1], lengths[:1])
        self.inner.select_rows(torch.zeros_like(lengths))
        self.lengths.copy_(lengths)
        self.note_longest(int(lengths.max()))

    def score_tree(self, pending: Tensor, tree: TokenTree) -> Tensor:
        distinct, which = torch.unique(tree.tokens, dim=0, return_inverse=True)
        count = len(distinct)
        self.inner.select_rows(torch.arange(count))
        shown = replace(tree, tokens=distinct, depths=tree.depths[:count], ancestors=tree.ancestors[:count])
        return self.inner.score_tree(pending[:count], shown)[which]

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.inner.forward(batch)

    def _allocate_slots(self, batch_size: int, num_slots: int) -> None:
        self.inner.allocate(1, num_slots - 1)

    def _use_slots(self, first_row: int, num_rows: int) -> None:
        """All rows, always."""

    def _select_slots(self, rows: Tensor) -> None:
        raise NotImplementedError

    def _copy_slots(self, source: int, target: int, num_slots: int) -> None:
        raise NotImplementedError

    def _swap_slots(self, first: int, second: int, num_slots: int) -> None:
        raise NotImplementedError

    def _move_slots(self, sources: Tensor, targets: Tensor) -> None:
        """Nothing follows the iteration."""


@dataclass
class FirstSteps:
    """The default pair behind one prompt, cut to the tokens that its first two steps can reach.

    Attributes:
        target: Speaks numbers of `kept`.
        draft: Likewise.
        kept: Ids of the tokens, `[tokens]`.
        prompt: Numbers of the prompt's tokens.
        model: The target as transformers runs it.
    """

    target: ModelRunner
    draft: ModelRunner
    kept: list[int]
    prompt: list[int]
    model: Any

    def emit(self, rule: str, history: list[int], seeds: list[int]) -> list[list[int]]:
        """What the first iteration behind a history emits with each seed."""
        options = GenerationOptions(method="speculative", verifier=rule, **DRAFTS[rule])
        decoder = build_decoder(
            options,
            SharedHistory(self.target),
            SharedHistory(self.draft),
            frozenset(),
            temperature=SETTINGS.temperature,
        )
        rows = [replace(SETTINGS, seed=seed) for seed in seeds]
        decoder.prefill([history] * len(seeds), rows, [1] * len(seeds))
        return [outcome.tokens for outcome in decoder.step([True] * len(seeds)) if outcome is not None]

    def target_law(self, history: list[int]) -> Array:
        """The target's warped probabilities of all tokens, by a plain forward pass, in the order of `kept`."""
        with torch.no_grad():
            logits = self.model(torch.tensor([[self.kept[token] for token in history]])).logits[0, -1]
        law = np.exp(warp(logits.double().numpy(), temperature=1.0, top_k=SETTINGS.top_k, top_p=SETTINGS.top_p))
        kept: Array = law[self.kept]
        assert kept.sum() == pytest.approx(1)
        return kept


def reachable_tokens(models: list[Any], prompt: list[int]) -> list[int]:
    """Ids of the prompt's tokens and of those that survive top-k in any model within two steps, in rising order."""
    found = set(prompt)
    histories = [prompt]
    for _ in range(2):
        with torch.no_grad():
            best = [model(torch.tensor(histories)).logits[:, -1].topk(SETTINGS.top_k).indices for model in models]
        following = sorted({int(token) for tokens in best for token in tokens.flatten()})
        found |= set(following)
        histories = [[*prompt, token] for token in following]
    return sorted(found)


@pytest.fixture(scope="module")
def plain_models(default_pair_paths: PairPaths) -> list[Any]:
    paths = (default_pair_paths.target, default_pair_paths.draft)
    return [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in paths]


@pytest.fixture(scope="module", params=PROMPTS)
def first_steps(request: pytest.FixtureRequest, engine: Engine, plain_models: list[Any]) -> FirstSteps:
    messages = [{"role": "user", "content": request.param}]
    prompt = engine.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    kept = reachable_tokens(plain_models, prompt)
    # Operations over 49,152 tokens of which ten survive would take most of the time.
    numbered = VocabularyMap(draft_ids=torch.tensor(kept), fed_ids=torch.tensor(kept), num_tokens=len(kept))
    assert engine.models.draft is not None
    return FirstSteps(
        target=TranslatedRunner(engine.models.target, numbered),
        draft=TranslatedRunner(engine.models.draft, numbered),
        kept=kept,
        prompt=[kept.index(token) for token in prompt],
        model=plain_models[0],
    )


def chi_square(tokens: list[int], law: Array) -> float:
    """Odds of counts as far from the law as these, or farther (Pearson 1900); rare tokens share a cell."""
    expected = len(tokens) * law
    counts = np.bincount(tokens, minlength=len(law)).astype(float)
    assert counts[law == 0].sum() == 0, "a token that the target never emits"
    order = np.argsort(-expected)
    num_common = int((expected >= SMALLEST_EXPECTED).sum())
    cells = [*zip(counts[order[:num_common]], expected[order[:num_common]], strict=True)]
    rest = (counts[order[num_common:]].sum(), expected[order[num_common:]].sum())
    if rest[1] >= SMALLEST_EXPECTED:
        cells.append(rest)
    else:
        cells[-1] = (cells[-1][0] + rest[0], cells[-1][1] + rest[1])
    assert len(cells) >= 3
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    return chi_square_tail(len(cells) - 1, statistic)


def chi_square_tail(degrees: int, statistic: float) -> float:
    """Odds that chi-square with so many degrees of freedom exceeds a value: a regularised incomplete gamma function."""
    half_degrees, half_statistic = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half_degrees, half_statistic))


def test_every_lossless_rule_is_here() -> None:
    lossless = {name for name in VERIFIER_NAMES if VERIFIERS[name](RuleSettings()).is_lossless}
    assert set(DRAFTS) == lossless - {"target_only"}


def test_the_odds_are_those_of_the_printed_tables() -> None:
    for degrees, statistic, odds in ((1, 3.841, 0.05), (2, 5.991, 0.05), (8, 26.124, 0.001)):
        assert chi_square_tail(degrees, statistic) == pytest.approx(odds, rel=1e-3)
    law = np.array([0.5, 0.25, 0.24, 0.01, 0.0])
    counts = [0] * 60 + [1] * 20 + [2] * 19 + [3]
    # The fourth token is rare and joins the third: (10^2 / 50 + 5^2 / 25 + 5^2 / 25) with 2 degrees of freedom.
    assert chi_square(counts, law) == pytest.approx(chi_square_tail(2, 4.0))


@pytest.mark.parametrize("rule", DRAFTS)
def test_the_first_two_tokens_follow_the_target(rule: str, first_steps: FirstSteps) -> None:
    prompt, seeds = first_steps.prompt, list(range(NUM_SEEDS))
    emitted = first_steps.emit(rule, prompt, seeds)
    first = [tokens[0] for tokens in emitted]
    commonest = Counter(first).most_common(1)[0][0]
    second = [tokens[1] for tokens in emitted if tokens[0] == commonest and len(tokens) > 1]
    open_seeds = [seed for seed, tokens in zip(seeds, emitted, strict=True) if tokens == [commonest]]
    assert min(len(second), len(open_seeds)) > 5
    second += [tokens[0] for tokens in first_steps.emit(rule, [*prompt, commonest], open_seeds)]
    assert chi_square(first, first_steps.target_law(prompt)) > ODDS
    assert chi_square(second, first_steps.target_law([*prompt, commonest])) > ODDS
