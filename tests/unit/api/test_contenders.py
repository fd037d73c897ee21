"""Words become contenders, or one sentence that says what is wrong."""

import pytest

from mtad.api.contenders import parse_contenders
from mtad.config import VERIFIER_NAMES, GenerationOptions
from mtad.decoding import resolve_pair
from mtad.errors import ConfigError

BASE = GenerationOptions(gamma=2)


def test_all_holds_sampling_and_every_rule() -> None:
    contenders = parse_contenders(["all"], BASE)
    pairs = [resolve_pair(item.options) for item in contenders]
    assert contenders[0].label == "autoregressive"
    assert {pair.verifier for pair in pairs if pair is not None} == set(VERIFIER_NAMES)
    assert {"joint@beam", "joint@beam_tree", "dynamic_beam"} <= {item.label for item in contenders}
    assert all(item.options.gamma == 2 for item in contenders)


def test_a_rule_comes_with_a_drafter_it_can_judge() -> None:
    labels = ["block", "traversal", "typical", "joint@dynamic_tree"]
    pairs = [resolve_pair(item.options) for item in parse_contenders(labels, BASE)]
    assert [pair.drafter for pair in pairs if pair] == ["chain", "branching_tree", "beam_tree", "dynamic_tree"]


def test_settings_of_its_own_follow_a_colon() -> None:
    first, second = parse_contenders(["mmtad:threshold=0.9,draw=gumbel", "beam_sampling:ignore_eos=true"], BASE)
    assert (first.options.threshold, first.options.draw, first.options.gamma) == (0.9, "gumbel", 2)
    assert second.options.ignore_eos
    assert second.is_lossless is None
    assert first.is_lossless is False


def test_a_contender_named_twice_runs_once() -> None:
    labels = [item.label for item in parse_contenders(["block", "all", "autoregressive", "block"], BASE)]
    assert labels.count("autoregressive") == 1
    assert labels[0] == "block"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("joints", "unknown rule 'joints'"),
        ("mmtad@beam", "unknown rule 'mmtad'"),
        ("joint@bean", "drafter must be one of"),
        ("block@beam_tree", "use drafter chain"),
        ("block:threshold=0.9", "threshold is a dial of joint"),
        ("beam_sampling:typical_delta=0.1", "typical_delta is a dial of typical, got method beam_sampling"),
        ("joint:threshold", "expected SETTING=VALUE"),
        ("joint:threshold=2", "threshold must be a number > 0 and <= 1, got 2"),
        ("joint:gamma=two", "gamma must be a whole number"),
        ("joint:ignore_eos=maybe", "ignore_eos must be true or false"),
        ("joint:gamma=60", "64 tree nodes"),
    ],
)
def test_words_that_mean_nothing_are_refused(word: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_contenders([word], BASE)
