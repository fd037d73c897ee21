"""Values and gradients of the fused losses against autograd over whole distributions."""

import pytest
import torch
from torch import Tensor

from mtad.distill.losses import fused_loss

TOKENS, VOCAB = 7, 11


def _pair(hidden: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(TOKENS, hidden, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(VOCAB, hidden, generator=generator, dtype=torch.float64, requires_grad=True)
    return states, head


def _target() -> Tensor:
    return 2 * torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def _plain(target: Tensor, states: Tensor, head: Tensor, loss: str) -> Tensor:
    log_p, log_q = target.log_softmax(-1), (states @ head.T).log_softmax(-1)
    overlap = torch.minimum(log_p.exp(), log_q.exp()).sum(-1)
    values = {"kl": (log_p.exp() * (log_p - log_q)).sum(-1), "tv": 1 - overlap, "acceptance": -overlap.log()}
    return values[loss].mean()


@pytest.mark.parametrize("loss", ["kl", "tv", "acceptance"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_values_and_gradients_are_those_of_the_plain_loss(loss: str, chunk: int) -> None:
    target, drafts = _target(), [_pair(5, 1), _pair(3, 2)]
    losses, overlaps = fused_loss(lambda a, b: target[a:b], drafts, loss, chunk)
    torch.autograd.backward(losses[0] + 3 * losses[1])
    for index, (states, head) in enumerate(drafts):
        expected = _plain(target, states, head, loss)
        scale = (1, 3)[index]
        gradients = torch.autograd.grad(scale * expected, (states, head))
        torch.testing.assert_close(losses[index], expected)
        torch.testing.assert_close(states.grad, gradients[0])
        torch.testing.assert_close(head.grad, gradients[1])
        torch.testing.assert_close(overlaps[index], 1 - _plain(target, states, head, "tv"))


@pytest.mark.parametrize("loss", ["kl", "tv", "acceptance"])
def test_gradients_are_those_of_finite_differences(loss: str) -> None:
    target, (states, head) = _target(), _pair(4, 3)

    def value(one: Tensor, two: Tensor) -> Tensor:
        return fused_loss(lambda a, b: target[a:b], [(one, two)], loss, 2)[0][0]

    assert torch.autograd.gradcheck(value, (states, head))


def test_without_gradients_the_values_are_the_same() -> None:
    target, pair = _target(), _pair(4, 3)
    expected = fused_loss(lambda a, b: target[a:b], [pair], "acceptance", 3)
    with torch.no_grad():
        found = fused_loss(lambda a, b: target[a:b], [pair], "acceptance", 3)
    assert torch.equal(found[0][0], expected[0][0].detach())
    assert torch.equal(found[1], expected[1])
    assert not found[0][0].requires_grad


def test_equal_distributions_lose_nothing() -> None:
    states, head = _pair(4, 3)
    target = (states @ head.T).detach()
    for loss in ("kl", "tv", "acceptance"):
        losses, overlaps = fused_loss(lambda a, b: target[a:b], [(states, head)], loss)
        assert abs(float(losses[0].detach())) < 1e-12
        assert float(overlaps[0]) == pytest.approx(1)


def test_tokens_that_the_target_forbids_cost_nothing() -> None:
    target, (states, head) = _target(), _pair(4, 3)
    target[:, 2] = -torch.inf
    losses, _ = fused_loss(lambda a, b: target[a:b], [(states, head)], "kl")
    torch.autograd.backward(losses[0])
    assert torch.isfinite(losses[0])
    assert states.grad is not None
    assert states.grad.isfinite().all()
