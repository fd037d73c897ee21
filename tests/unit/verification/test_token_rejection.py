"""Token rejection: the exact law of what it emits, found by bisection over the random numbers it uses."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tests.oracles import Array, all_paths, log_softmax
from tests.table_models import controls, seeded_controls
from torch import Tensor

from mtad.drafting import chain_tree
from mtad.sampling import Stream
from mtad.structures import Acceptance, RowControls, RowSettings, TokenTree
from mtad.verification import TokenRejectionVerifier

ALWAYS, NEVER = 1e-300, 1 - 2.0**-40
BISECTIONS = 42


@dataclass
class Numbers:
    """The random numbers that the rule is given instead of its own."""

    by_stream: dict[Stream, Tensor] = field(default_factory=dict)

    def __call__(self, rows: RowControls, stream: Stream, depth: int, count: int) -> Tensor:
        assert self.by_stream[stream].shape == (len(rows.seeds), count)
        return self.by_stream[stream]


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> Numbers:
    numbers = Numbers()
    monkeypatch.setattr("mtad.verification.token_rejection.uniform", numbers)
    monkeypatch.setattr("mtad.verification.base.uniform", numbers)
    return numbers


def conditionals(seed: int, vocab: int, length: int, zeros: float = 0.0) -> list[Array]:
    """Random log-probabilities of token d + 1 after each path of d tokens, `[vocab] * (d + 1)` for each d."""
    generator = np.random.default_rng(seed)
    levels = []
    for depth in range(length):
        logits = 2 * generator.standard_normal((vocab**depth, vocab))
        logits[generator.random(logits.shape) < zeros] = -np.inf
        logits[:, 0] = 0.0
        rows = np.stack([log_softmax(row) for row in logits])
        levels.append(rows.reshape([vocab] * (depth + 1)))
    return levels


@dataclass
class Case:
    """Every draft of gamma tokens as one row of a batch."""

    target: list[Array]
    draft: list[Array]
    batches: dict[int, tuple[TokenTree, Tensor, RowControls]] = field(default_factory=dict)

    @property
    def gamma(self) -> int:
        return len(self.draft)

    @property
    def vocab(self) -> int:
        return len(self.draft[0])

    def batch(self, copies: int = 1) -> tuple[TokenTree, Tensor, RowControls]:
        if copies not in self.batches:
            self.batches[copies] = self._build_batch(copies)
        return self.batches[copies]

    def _build_batch(self, copies: int) -> tuple[TokenTree, Tensor, RowControls]:
        paths = [path for path in all_paths(self.vocab, self.gamma) for _ in range(copies)]
        target = np.stack([[self.target[end][path[:end]] for end in range(self.gamma + 1)] for path in paths])
        draft = np.stack([[self.draft[end][path[:end]] for end in range(self.gamma)] for path in paths])
        tokens, distributions = torch.tensor(paths), torch.from_numpy(draft)
        joint = distributions.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).cumsum(1)
        rows = seeded_controls(RowSettings(), torch.zeros(len(paths), dtype=torch.int64))
        return chain_tree(tokens, joint, distributions), torch.from_numpy(target), rows


def bisect(num_rows: int, is_inside: Callable[[Tensor], Tensor]) -> Tensor:
    """Per row, the number below which `is_inside` holds."""
    low, high = torch.zeros(num_rows, dtype=torch.float64), torch.ones(num_rows, dtype=torch.float64)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = is_inside(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return high


def accept_at(case: Case, numbers: Numbers, accept: Tensor, following: Tensor, copies: int = 1) -> Acceptance:
    tree, target, rows = case.batch(copies)
    numbers.by_stream = {Stream.ACCEPT: accept, Stream.NEXT_TOKEN: following.unsqueeze(1)}
    return TokenRejectionVerifier().accept(tree, target, rows)


def acceptance_chances(case: Case, numbers: Numbers) -> Array:
    """Chance that each token of each draft is accepted once those before it are, `[drafts, gamma]`."""
    num_drafts = case.vocab**case.gamma
    columns = []
    for index in range(case.gamma):

        def is_accepted(middle: Tensor, index: int = index) -> Tensor:
            accept = torch.full((num_drafts, case.gamma), ALWAYS, dtype=torch.float64)
            accept[:, index] = middle
            return accept_at(case, numbers, accept, middle).num_accepted > index

        columns.append(bisect(num_drafts, is_accepted).numpy())
    return np.stack(columns, 1)


def following_laws(case: Case, numbers: Numbers, num_accepted: int) -> Array:
    """Law of the token after `num_accepted` kept ones, for every draft, `[drafts, vocab]`."""
    num_rows = case.vocab ** (case.gamma + 1)
    wanted = torch.arange(case.vocab).repeat(case.vocab**case.gamma)
    accept = torch.full((num_rows, case.gamma), ALWAYS, dtype=torch.float64)
    accept[:, num_accepted:] = NEVER

    def is_at_most_wanted(middle: Tensor) -> Tensor:
        return accept_at(case, numbers, accept, middle, copies=case.vocab).next_tokens <= wanted

    cumulative = bisect(num_rows, is_at_most_wanted).view(-1, case.vocab).numpy()
    return np.diff(cumulative, axis=1, prepend=0.0)


def emitted_law(case: Case, numbers: Numbers) -> Array:
    """Law of gamma + 1 tokens: the rule's block, completed by the target, `[vocab] * (gamma + 1)`."""
    shape = [case.vocab] * case.gamma
    draft_law = np.ones(shape)
    for depth, level in enumerate(case.draft):
        draft_law = draft_law * np.exp(level).reshape([*level.shape, *[1] * (case.gamma - depth - 1)])
    chances = acceptance_chances(case, numbers).reshape([*shape, case.gamma])
    total = np.zeros([case.vocab] * (case.gamma + 1))
    reached = draft_law
    for kept in range(case.gamma + 1):
        stops = reached * (1 - chances[..., kept]) if kept < case.gamma else reached
        laws = following_laws(case, numbers, kept).reshape([*shape, case.vocab])
        unused = tuple(range(kept, case.gamma))
        block = (stops[..., None] * laws).sum(axis=unused)
        for level in case.target[kept + 1 :]:
            block = block[..., None] * np.exp(level)
        total += block
        if kept < case.gamma:
            reached = reached * chances[..., kept]
    return total


def joint_law(levels: list[Array]) -> Array:
    law = np.ones(())
    for level in levels:
        law = law[..., None] * np.exp(level)
    return law


@pytest.mark.parametrize(
    ("vocab", "gamma", "zeros"),
    [(2, 1, 0), (8, 1, 0), (8, 1, 0.4), (3, 2, 0), (5, 2, 0.3), (2, 3, 0), (4, 3, 0.2), (8, 3, 0.1)],
)
def test_the_emitted_law_is_the_law_of_the_target(vocab: int, gamma: int, zeros: float, numbers: Numbers) -> None:
    target = conditionals(vocab, vocab, gamma + 1, zeros)
    case = Case(target, conditionals(vocab + 100, vocab, gamma, zeros))
    np.testing.assert_allclose(emitted_law(case, numbers), joint_law(target), rtol=0, atol=1e-9)


def test_the_chance_of_acceptance_is_the_ratio_capped_at_one(numbers: Numbers) -> None:
    case = Case(conditionals(1, 4, 3), conditionals(2, 4, 2))
    expected = [
        [min(1.0, np.exp(case.target[d][path[:d]] - case.draft[d][path[:d]])[path[d]]) for d in range(2)]
        for path in all_paths(4, 2)
    ]
    np.testing.assert_allclose(acceptance_chances(case, numbers), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_the_expected_length_follows_the_formula(gamma: int, numbers: Numbers) -> None:
    # With laws that ignore the context, E[kept] = a + a^2 + ... + a^gamma, a = sum of min(p, q).
    target, draft = (log_softmax(2 * np.random.default_rng(seed).standard_normal(4)) for seed in (3, 4))
    levels = [[np.broadcast_to(law, [4] * (d + 1)) for d in range(gamma + 1)] for law in (target, draft)]
    case = Case(levels[0], levels[1][:gamma])
    chances = acceptance_chances(case, numbers)
    weights = np.exp([sum(draft[token] for token in path) for path in all_paths(4, gamma)])
    alpha = np.minimum(np.exp(target), np.exp(draft)).sum()
    expected = sum(alpha**length for length in range(1, gamma + 1))
    assert (weights * chances.cumprod(1).sum(1)).sum() == pytest.approx(expected, abs=1e-9)


def test_equal_models_accept_everything() -> None:
    levels = conditionals(5, 4, 4)
    tree, target, rows = Case(levels, levels[:3]).batch()
    accepted = TokenRejectionVerifier().accept(tree, target, rows)
    assert accepted.num_accepted.tolist() == [3] * 64
    assert accepted.path_nodes.tolist() == [[0, 1, 2]] * 64
    assert accepted.joint_log_ratio.abs().max() < 1e-12


def test_the_joint_ratio_is_that_of_the_kept_path() -> None:
    tree, target, rows = Case(conditionals(6, 4, 4), conditionals(7, 4, 3)).batch()
    accepted = TokenRejectionVerifier().accept(tree, target, rows)
    assert tree.draft_log_probs is not None
    tokens = tree.tokens.unsqueeze(-1)
    ratios = (target[:, :3].gather(-1, tokens) - tree.draft_log_probs.gather(-1, tokens)).squeeze(-1).cumsum(1)
    for row, length in enumerate(accepted.num_accepted.tolist()):
        expected = float(ratios[row, length - 1]) if length else 0.0
        assert float(accepted.joint_log_ratio[row]) == pytest.approx(expected, abs=1e-12)
        assert accepted.path_nodes[row].tolist() == [*range(length), *[-1] * (3 - length)]


def test_one_hot_models_keep_what_agrees_and_correct_the_rest() -> None:
    def one_hot(tokens: list[int]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(tokens), 4).double().log()

    draft = one_hot([1, 2, 3]).unsqueeze(0)
    tree = chain_tree(torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, dtype=torch.float64), draft)
    rows = controls(RowSettings(temperature=0), one_hot_at_zero=True)
    for target, kept, following in (([1, 2, 3, 0], 3, 0), ([1, 0, 3, 1], 1, 0), ([2, 2, 3, 1], 0, 2)):
        accepted = TokenRejectionVerifier().accept(tree, one_hot(target).unsqueeze(0), rows)
        assert accepted.num_accepted.tolist() == [kept]
        assert accepted.next_tokens.tolist() == [following]
