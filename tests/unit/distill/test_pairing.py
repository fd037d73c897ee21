"""Overlap and logits through the runners are those of the plain models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny_models import tiny_model
from tests.unit.distill.conftest import model_options

from mtad.distill.pairing import load_pair, pair_overlap, whole_logits
from mtad.distill.store import Text
from mtad.models.transformers_runner import TransformersRunner

TEXTS = [Text([5, 6, 7, 8, 9, 10], 2), Text([11, 12, 13], 1)]


def _runner(seed: int) -> TransformersRunner:
    runner = TransformersRunner(tiny_model(seed=seed))
    runner.attach()
    return runner


def test_whole_logits_are_those_of_one_plain_call() -> None:
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    torch.testing.assert_close(whole_logits(_runner(0), tokens), tiny_model(seed=0)(input_ids=tokens).logits)


def test_the_overlap_is_one_with_itself_and_the_smaller_mass_with_another() -> None:
    value, places = pair_overlap(_runner(0), _runner(0), TEXTS)
    assert value == pytest.approx(1)
    assert places == 6
    expected = []
    for text in TEXTS:
        tokens = torch.tensor([text.token_ids])
        p, q = (tiny_model(seed=seed)(input_ids=tokens).logits[0].softmax(-1) for seed in (0, 1))
        expected += torch.minimum(p, q).sum(-1)[text.num_prompt_tokens - 1 : -1].tolist()
    value, _ = pair_overlap(_runner(0), _runner(1), TEXTS)
    assert value == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_a_pair_of_one_vocabulary_is_exact(target_folder: Path) -> None:
    pairing = load_pair(replace(model_options(target_folder), draft=str(target_folder)))
    assert (pairing.fit, pairing.words) == ("exact", "the same 61 tokens")
