"""Verdicts follow from the figures."""

from dataclasses import replace
from typing import Any

import pytest

from mtad.config import ModelOptions
from mtad.distill.cost_model import PairCosts
from mtad.distill.diagnosis import choose_methods, judge

OPTIONS = ModelOptions(target="big", draft="small")


def _costs(draft: float, verify: float = 1.0) -> PairCosts:
    return PairCosts(target_ms=10, draft=draft, draft_level=draft, verify=dict.fromkeys((1, 2, 3, 4, 8), verify))


def _figures(speed: float) -> list[dict[str, Any]]:
    slower = {"method": "mtad", "speedup": {"median": speed - 0.1}}
    best = {"method": "mmtad:gamma=4,beam_width=4", "speedup": {"median": speed}}
    return [{"method": "autoregressive", "speedup": {"median": 1.0}}, slower, best]


@pytest.mark.parametrize(
    ("draft", "overlap", "verify", "speed", "verdict"),
    [
        (0.1, 0.5, 1.0, 1.4, "use"),
        (1.0, 1.0, 1.0, 0.8, "do not use"),
        (0.1, 0.1, 1.0, 0.9, "train"),
        (0.1, 0.7, 3.0, 0.7, "do not use"),
    ],
)
def test_the_verdict(draft: float, overlap: float, verify: float, speed: float, verdict: str) -> None:
    found = judge(OPTIONS, "exact", _costs(draft, verify), overlap, _figures(speed))
    assert found["verdict"] == verdict


def test_the_command_has_the_settings_of_the_fastest() -> None:
    found = judge(OPTIONS, "translated", _costs(0.1), 0.5, _figures(1.4))
    assert found["command"] == (
        "mtad generate --target big --draft small --match-vocabularies intersection --method mmtad --gamma 4 "
        "--beam-width 4"
    )


def test_the_command_has_the_weights_that_were_measured() -> None:
    found = judge(replace(OPTIONS, quantization="int8"), "exact", _costs(0.1), 0.5, _figures(1.4))
    assert "--draft small --quantization int8 --method" in found["command"]


def test_a_draft_that_cannot_read_the_tokens_is_replaced() -> None:
    found = judge(OPTIONS, "none", None, None, ())
    assert (found["verdict"], found["command"]) == ("train", "mtad distill --target big --out draft --size auto")


def test_speculative_sampling_is_asked_for_the_length_that_pays() -> None:
    assert choose_methods(0.9, _costs(0.01))["speculative:gamma=8"].gamma == 8
    assert choose_methods(0.3, _costs(0.4))["speculative:gamma=1"].gamma == 1
