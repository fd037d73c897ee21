"""Constraints on single trees, against transformers' own processors called place by place."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.random_trees import random_trees
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from mtad.constraints import Constraints, Places
from mtad.structures import RowConstraints

VOCAB = 7
PROMPTS = [[1, 2, 6], [3], [4, 4, 5, 0]]


def started(*rows: RowConstraints, prompts: Sequence[Sequence[int]] = PROMPTS) -> Constraints:
    constraints = Constraints()
    constraints.start(prompts, rows, VOCAB, torch.device("cpu"))
    return constraints


def random_places(seed: int) -> tuple[Places, Tensor]:
    places = Places.of_tree(random_trees(seed, len(PROMPTS), gamma=3, width=3, vocab=VOCAB).tree)
    return places, torch.from_numpy(3 * np.random.default_rng(seed).standard_normal((len(PROMPTS), 10, VOCAB)))


def expected_scores(processors: Sequence[object], places: Places, logits: Tensor, texts: Sequence[list[int]]) -> Tensor:
    scores = logits.clone()
    for row, processor in enumerate(processors):
        for place, path in enumerate(places.paths()[row]):
            token_ids = torch.tensor([[*texts[row], *path]])
            scores[row, place] = processor(token_ids, logits[row, place : place + 1].clone())[0]  # type: ignore[operator]
    return scores


@pytest.mark.parametrize("on_host", [False, True])
def test_the_penalty_is_that_of_transformers(on_host: bool) -> None:
    processors = [RepetitionPenaltyLogitsProcessor(penalty) for penalty in (1.3, 0.7, 2.0)]
    rows = [
        RowConstraints(logits_processors=(item,)) if on_host else RowConstraints(repetition_penalty=item.penalty)
        for item in processors
    ]
    constraints = started(*rows)
    places, logits = random_places(1)
    scores, is_dead_end = constraints.apply(logits, places)
    torch.testing.assert_close(scores, expected_scores(processors, places, logits, PROMPTS), rtol=0, atol=1e-12)
    assert is_dead_end is None or not is_dead_end.any()
    # Rows 0 and 2 go on, by two tokens and by one.
    tokens = torch.tensor([[5, 3, 6], [1, 1, 1], [2, 6, 6]])
    constraints.append(tokens, torch.tensor([2, 3, 1]), torch.tensor([True, False, True]))
    constraints.note([[5, 3], [], [2]])
    texts = [[*PROMPTS[0], 5, 3], PROMPTS[1], [*PROMPTS[2], 2]]
    places, logits = random_places(2)
    expected = expected_scores(processors, places, logits, texts)
    torch.testing.assert_close(constraints.apply(logits, places)[0], expected, rtol=0, atol=1e-12)
    constraints.select_rows([2, 0])
    constraints.begin_step([True, True])
    chosen = Places(places.tokens[[2, 0]], places.ancestors[[2, 0]])
    got, _ = constraints.apply(logits[[2, 0]], chosen)
    torch.testing.assert_close(got, expected[[2, 0]], rtol=0, atol=1e-12)


class Occurrences:
    """The two penalties over one row's answer, as OpenAI's interface defines them."""

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self.presence, self.frequency, self.start = presence, frequency, prompt_length

    def __call__(self, token_ids: Tensor, scores: Tensor) -> Tensor:
        counts = token_ids[0, self.start :].bincount(minlength=VOCAB).to(scores.dtype)
        return scores - self.frequency * counts - self.presence * (counts > 0)


def test_occurrences_are_counted_in_the_answer_and_on_each_path() -> None:
    penalties = [(0.5, 0.0), (-1.0, 0.7), (0.0, 1.5)]
    rows = [RowConstraints(presence_penalty=presence, frequency_penalty=often) for presence, often in penalties]
    processors = [Occurrences(*pair, len(prompt)) for pair, prompt in zip(penalties, PROMPTS, strict=True)]
    constraints = started(*rows)
    places, logits = random_places(7)
    got, is_dead_end = constraints.apply(logits, places)
    torch.testing.assert_close(got, expected_scores(processors, places, logits, PROMPTS), rtol=0, atol=1e-12)
    assert is_dead_end is None
    assert not constraints.needs_host
    tokens = torch.tensor([[5, 5, 6], [1, 1, 1], [2, 6, 6]])
    constraints.append(tokens, torch.tensor([2, 3, 3]), torch.tensor([True, False, True]))
    texts = [[*PROMPTS[0], 5, 5], PROMPTS[1], [*PROMPTS[2], 2, 6, 6]]
    places, logits = random_places(8)
    expected = expected_scores(processors, places, logits, texts)
    torch.testing.assert_close(constraints.apply(logits, places)[0], expected, rtol=0, atol=1e-12)
    constraints.select_rows([2, 0])
    chosen = Places(places.tokens[[2, 0]], places.ancestors[[2, 0]])
    torch.testing.assert_close(constraints.apply(logits[[2, 0]], chosen)[0], expected[[2, 0]], rtol=0, atol=1e-12)


def test_biases_are_added_and_may_forbid() -> None:
    biases = [{3: 2.5, 0: -1.0}, {6: -math.inf}, {}]
    constraints = started(*[RowConstraints(logit_bias=tuple(item.items())) for item in biases])
    places, logits = random_places(3)
    processors = [SequenceBiasLogitsProcessor([[[key], value] for key, value in item.items()]) for item in biases[:2]]
    expected = expected_scores([*processors, lambda ids, scores: scores], places, logits, PROMPTS)
    torch.testing.assert_close(constraints.apply(logits, places)[0], expected, rtol=0, atol=1e-6)


def test_processors_come_after_penalty_and_bias_and_see_each_path() -> None:
    ngrams = NoRepeatNGramLogitsProcessor(2)
    rows = [RowConstraints(repetition_penalty=1.5, logit_bias=((2, 1.0),), logits_processors=(ngrams,))] * 3
    places, logits = random_places(4)
    got, _ = started(*rows).apply(logits, places)

    def chain(token_ids: Tensor, scores: Tensor) -> Tensor:
        scores = RepetitionPenaltyLogitsProcessor(1.5)(token_ids, scores)
        scores[:, 2] += 1
        ngrams_only: Tensor = ngrams(token_ids, scores)
        return ngrams_only

    expected = expected_scores([chain] * 3, places, logits, PROMPTS)
    assert (expected == -math.inf).any()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_rows_that_rest_are_not_processed() -> None:
    calls = []

    def count(token_ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(token_ids.tolist()[0])
        return scores

    constraints = started(RowConstraints(), RowConstraints(logits_processors=(count,)), prompts=PROMPTS[:2])
    places = Places.root(torch.tensor([6, 3]))
    logits = torch.zeros(2, 1, VOCAB)
    constraints.begin_step([True, False])
    constraints.apply(logits, places)
    assert calls == []
    constraints.begin_step([True, True])
    constraints.apply(logits, places)
    assert calls == [[3]]


def test_a_processor_that_writes_into_its_scores_leaves_the_logits_alone() -> None:
    def forbid(token_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, 1:] = -math.inf
        return scores

    places, logits = random_places(5)
    before = logits.clone()
    constraints = started(*[RowConstraints(logits_processors=(forbid,))] * 3)
    assert (constraints.apply(logits, places)[0][..., 1:] == -math.inf).all()
    assert torch.equal(logits, before)


def test_where_nothing_may_follow_the_logits_stay_and_it_is_said() -> None:
    def forbid_after_two(token_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -math.inf) if int(token_ids[0, -1]) == 2 else scores

    constraints = started(*[RowConstraints(logits_processors=(forbid_after_two,))] * 3)
    places, logits = random_places(6)
    scores, is_dead_end = constraints.apply(logits, places)
    assert is_dead_end is not None
    ends = [[(*prompt, *path)[-1] == 2 for path in row] for prompt, row in zip(PROMPTS, places.paths(), strict=True)]
    assert is_dead_end.tolist() == ends
    assert is_dead_end.any()
    assert torch.equal(scores, logits)


def test_no_constraint_costs_nothing() -> None:
    constraints = started(*[RowConstraints()] * 3)
    logits = torch.zeros(3, 1, VOCAB, dtype=torch.bfloat16)
    scores, is_dead_end = constraints.apply(logits, Places.root(torch.tensor([6, 3, 0])))
    assert scores is logits
    assert is_dead_end is None
    assert not constraints.needs_host
