"""One step of beam sampling: weights, missing beams, unwarped log-probabilities."""

import itertools

import pytest
import torch
from tests.table_models import controls

from mtad.drafting import Beams, BeamSampler
from mtad.drafting.beams import Draw
from mtad.structures import RowSettings

NO_EOS = torch.tensor([], dtype=torch.int64)
ROWS = (RowSettings(seed=5), RowSettings(seed=6, temperature=0.5, top_k=2), RowSettings(seed=7, top_p=0.6))


def grow(draw: Draw, width: int, depth: int, dtype: torch.dtype = torch.float64) -> list[Beams]:
    generator = torch.Generator().manual_seed(0)
    sampler = BeamSampler(width=width, draw=draw, eos_token_ids=torch.tensor([4]), keeps_unwarped=True)
    logits = torch.randn(3, 1, 5, generator=generator).to(dtype)
    beams = Beams.root(logits)
    levels = []
    for level in range(1, depth + 1):
        beams = sampler.expand(beams, logits, controls(*ROWS), level)
        levels.append(beams)
        logits = torch.randn(3, width, 5, generator=generator).to(dtype)
    return levels


@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_sum_to_one(draw: Draw, dtype: torch.dtype) -> None:
    for beams in grow(draw, 4, 6, dtype):
        assert beams.weights.exp().sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
        assert not beams.weights.isnan().any()
        assert not beams.joint.isnan().any()
        assert torch.equal(beams.weights == -torch.inf, beams.joint == -torch.inf)


@pytest.mark.parametrize("draw", ["top", "gumbel", "sample"])
def test_weights_are_proportional_to_joint_probabilities(draw: Draw) -> None:
    for beams in grow(draw, 4, 6):
        torch.testing.assert_close(beams.weights, beams.joint.log_softmax(1))


def test_unwarped_log_probs_are_those_of_the_logits() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0]]], dtype=torch.float64)
    sampler = BeamSampler(width=2, draw="top", eos_token_ids=NO_EOS, keeps_unwarped=True)
    beams = sampler.expand(Beams.root(logits), logits, controls(RowSettings(temperature=0.1, top_k=2)), 1)
    assert beams.tokens.tolist() == [[0, 1]]
    assert beams.unwarped is not None
    torch.testing.assert_close(beams.unwarped, logits[:, 0].log_softmax(-1)[:, :2])


def test_a_carried_beam_keeps_its_joint_probability() -> None:
    levels = grow("top", 4, 6)
    for before, after in itertools.pairwise(levels):
        assert after.unwarped is not None
        stays = after.joint[after.carried]
        assert torch.equal(stays, before.joint.gather(1, after.origins)[after.carried])
        assert bool((after.unwarped[after.carried] == 0).all())
        assert bool(after.finished[after.carried].all())
    assert levels[-1].carried.any()
