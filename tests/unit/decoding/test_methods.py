"""Method names become decoders, and what does not fit is refused by name."""

from typing import Any

import pytest
import torch

from mtad.config import METHOD_NAMES, GenerationOptions
from mtad.decoding import build_decoder, needs_draft_model, resolve_pair
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.beam_sampling import BeamSamplingDecoder
from mtad.decoding.dynamic_beam import DynamicBeamDecoder
from mtad.decoding.joint_beam import JointBeamDecoder
from mtad.decoding.joint_exact import JointExactDecoder
from mtad.drafting import DRAFTERS
from mtad.errors import ConfigError
from mtad.models.table import TableRunner
from mtad.structures import RowSettings
from mtad.verification import VERIFIERS

MODEL = TableRunner(torch.zeros(4, 4, dtype=torch.float64))


def build(temperature: float = 1.0, draft: TableRunner | None = MODEL, **options: Any) -> object:
    return build_decoder(GenerationOptions(**options), MODEL, draft, frozenset({1}), temperature=temperature)


@pytest.mark.parametrize(
    ("method", "temperature", "expected"),
    [
        ("autoregressive", 1.0, AssistedDecoder),
        ("speculative", 1.0, AssistedDecoder),
        ("mtad", 0.0, AssistedDecoder),
        ("mmtad", 1.0, AssistedDecoder),
        ("beam_sampling", 0.0, BeamSamplingDecoder),
        ("dynamic_beam", 0.0, DynamicBeamDecoder),
        ("mtjd", 1.0, JointBeamDecoder),
        ("mtjd", 0.0, JointExactDecoder),
    ],
)
def test_each_method_has_its_decoder(method: str, temperature: float, expected: type) -> None:
    assert type(build(temperature, method=method)) is expected


def test_every_method_can_be_built() -> None:
    for method in METHOD_NAMES:
        build(method=method)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_missing_draft_is_an_error_where_one_is_needed(method: str) -> None:
    if needs_draft_model(GenerationOptions(method=method)):
        with pytest.raises(ConfigError, match=f"^method {method} needs a draft model; name one with --draft$"):
            build(draft=None, method=method)
    else:
        build(draft=None, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drafter": "guess"}, f"drafter must be one of {', '.join(DRAFTERS)}, got 'guess'"),
        ({"verifier": "trust"}, f"verifier must be one of {', '.join(VERIFIERS)}, got 'trust'"),
        ({"drafter": "none"}, "verifier joint needs a draft, got drafter none; choose another drafter"),
        ({"verifier": "token_rejection"}, "verifier token_rejection needs tokens drawn from distributions"),
        ({"drafter": "beam", "verifier": "token_rejection"}, "use drafter chain"),
        ({"method": "mtjd", "drafter": "beam"}, "mtjd takes no drafter or verifier"),
        ({"method": "dynamic_beam", "verifier": "joint"}, "dynamic_beam takes no drafter or verifier"),
        ({"method": "beam_sampling", "verifier": "joint"}, "beam_sampling takes no drafter or verifier"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("drafter", list(DRAFTERS))
@pytest.mark.parametrize("verifier", list(VERIFIERS))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_allowed_pair_decodes(drafter: str, verifier: str, temperature: float) -> None:
    options = GenerationOptions(drafter=drafter, verifier=verifier, gamma=2, beam_width=2)
    try:
        resolve_pair(options)
    except ConfigError:
        return
    decoder = build_decoder(options, MODEL, TableRunner(MODEL.table), frozenset(), temperature=temperature)
    decoder.prefill([[1], [2, 3]], [RowSettings(temperature=temperature)] * 2, [8] * 2)
    for _ in range(2):
        for outcome in decoder.step([True, True]):
            assert outcome is not None
            assert len(outcome.tokens) == len(outcome.log_probs) == outcome.num_drafted + 1
