"""Bookkeeping of one answer: where it ends, who wrote what, and what it cost."""

import math
from dataclasses import replace

import pytest
from tests.table_models import letters

from mtad.decoding.answers import AnswerBuilder, AnswerLimits, RunFacts
from mtad.decoding.outcome import PhaseTimes, RowOutcome, undrafted
from mtad.structures import GenerationResult

EOS = 9


def builder(limit: int = 100, stop: tuple[str, ...] = ()) -> AnswerBuilder:
    limits = AnswerLimits(max_new_tokens=limit, eos_token_ids=frozenset({EOS}), stop=stop)
    return AnswerBuilder(3, 7, limits, letters)


def outcome(tokens: list[int], num_drafted: int, ratio: float = 0.0, calls: int = 1) -> RowOutcome:
    return RowOutcome(
        tokens=tokens,
        num_drafted=num_drafted,
        log_probs=[-0.1 * (token + 1) for token in tokens],
        joint_log_ratio=ratio,
        target_calls=calls,
    )


def finish(answer: AnswerBuilder, gamma: int = 3) -> GenerationResult:
    facts = RunFacts(method="mtad", config={"gamma": gamma}, gamma=gamma)
    return answer.result(facts, prefill_s=0.5, decode_s=2.0, times=PhaseTimes(draft_s=0.25, verify_s=0.75))


def test_tokens_know_where_they_come_from() -> None:
    answer = builder()
    piece = answer.take(outcome([0, 1, 2], 2))
    assert piece.row == 3
    assert piece.token_ids == (0, 1, 2)
    assert piece.provenance == ("drafted", "drafted", "target")
    assert piece.segments == (("ab", "drafted"), ("c", "target"))
    assert piece.text == "abc"
    assert piece.log_probs == pytest.approx((-0.1, -0.2, -0.3))
    assert piece.finish_reason is None
    assert not answer.is_finished


@pytest.mark.parametrize(
    ("tokens", "num_drafted", "kept", "num_kept_drafted"),
    [([0, EOS, 1, 2], 3, (0, EOS), 2), ([EOS, EOS, EOS, 1], 3, (EOS,), 1), ([0, 1, EOS], 2, (0, 1, EOS), 2)],
)
def test_an_answer_is_cut_right_after_eos(
    tokens: list[int], num_drafted: int, kept: tuple[int, ...], num_kept_drafted: int
) -> None:
    answer = builder()
    piece = answer.take(outcome(tokens, num_drafted))
    result = finish(answer)
    assert piece.token_ids == result.token_ids == kept
    assert piece.finish_reason == result.finish_reason == "stop"
    assert result.text == letters(kept[:-1])
    assert result.accepted_lengths == (num_kept_drafted,)
    assert result.provenance.count("drafted") == num_kept_drafted


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_an_answer_is_cut_at_its_limit(limit: int) -> None:
    answer = builder(limit)
    answer.take(outcome([0, 1, 2, 3, 4], 4))
    result = finish(answer)
    assert result.token_ids == tuple(range(limit))
    assert result.finish_reason == "length"
    assert result.accepted_lengths == (limit,)
    assert len(result.log_probs) == len(result.provenance) == limit


def test_eos_at_the_limit_is_a_stop() -> None:
    answer = builder(2)
    answer.take(outcome([0, EOS, 1], 2))
    assert finish(answer).finish_reason == "stop"


def test_a_stop_string_across_iterations_ends_the_answer() -> None:
    answer = builder(stop=("cd",))
    first, second = answer.take(outcome([0, 1, 2], 2)), answer.take(outcome([3, 4, 5], 2))
    assert first.text == "ab"
    assert second.text == ""
    assert second.token_ids == (3,)
    result = finish(answer)
    assert result.text == "ab"
    assert result.token_ids == (0, 1, 2, 3)
    assert result.finish_reason == "stop"
    assert result.accepted_lengths == (2, 1)


def test_text_held_for_a_stop_string_is_shown_at_eos() -> None:
    answer = builder(stop=("cd",))
    answer.take(outcome([0, 2], 1))
    piece = answer.take(outcome([EOS], 0))
    assert piece.text == "c"
    assert finish(answer).text == "ac"


def test_costs_and_likelihood_are_counted() -> None:
    answer = builder(6)
    answer.take(outcome([0, 1, 2], 2, ratio=0.5))
    answer.take(outcome([3], 0))
    answer.take(outcome([4, 5, 6, 7], 3, ratio=-0.25, calls=2))
    result = finish(answer, gamma=3)
    assert result.accepted_lengths == (2, 0, 2)
    assert result.joint_log_ratios == (0.5, 0.0, -0.25)
    stats = result.stats
    assert (stats.num_prompt_tokens, stats.num_tokens, stats.target_calls) == (7, 6, 4)
    assert stats.tokens_per_call == 1.5
    assert stats.acceptance_by_depth == pytest.approx((2 / 3, 2 / 3, 0))
    assert stats.perplexity == pytest.approx(math.exp(0.1 * (1 + 2 + 3 + 4 + 5 + 6) / 6))
    assert (stats.prefill_s, stats.decode_s, stats.draft_s, stats.verify_s) == (0.5, 2.0, 0.25, 0.75)
    assert stats.tokens_per_s == 3
    assert result.method == "mtad"
    assert result.to_dict()["stats"]["num_tokens"] == 6


def test_a_method_that_answers_at_the_end_counts_every_call() -> None:
    answer = builder(2)
    assert answer.take(undrafted([], [], 1)).token_ids == ()
    answer.take(undrafted([0, 1], [-1.0, -2.0], 1))
    result = finish(answer, gamma=0)
    assert result.stats.target_calls == 2
    assert result.stats.acceptance_by_depth == ()
    assert result.provenance == ("target", "target")


def test_a_method_that_drafts_and_answers_at_the_end_counts_its_levels() -> None:
    answer = builder()
    waiting = replace(undrafted([], [], 1), num_drafted=2, from_draft=[])
    answer.take(waiting)
    answer.take(replace(waiting, tokens=[0, 1], log_probs=[-1.0, -2.0], num_drafted=0, from_draft=[False, True]))
    result = finish(answer, gamma=2)
    assert result.provenance == ("target", "drafted")
    assert result.accepted_lengths == (2, 0)
    assert result.stats.acceptance_by_depth == (0.5, 0.5)


def test_a_cancelled_answer_keeps_what_it_has() -> None:
    answer = builder(stop=("cx",))
    answer.take(outcome([0, 2], 2))
    piece = answer.cancel()
    assert piece.text == "c"
    assert piece.segments == (("c", "drafted"),)
    assert piece.finish_reason == "cancelled"
    assert finish(answer).text == "ac"


def test_an_empty_answer_has_no_likelihood() -> None:
    answer = builder()
    answer.cancel()
    stats = finish(answer).stats
    assert math.isnan(stats.perplexity)
    assert (stats.tokens_per_call, stats.tokens_per_s, stats.acceptance_by_depth) == (0, 0, (0, 0, 0))
