"""Tensors that never change."""

import torch

from mtad.structures.constants import first_numbers, single_bits

CPU = torch.device("cpu")


def test_numbers_are_those_of_arange() -> None:
    for count, start in ((0, 0), (5, 0), (7, 1017), (8, 1017), (3000, 2)):
        assert torch.equal(first_numbers(count, CPU, start), torch.arange(start, start + count))


def test_bits_are_single_ones() -> None:
    assert single_bits(64, CPU).tolist() == [*(1 << bit for bit in range(63)), -(1 << 63)]
    assert single_bits(2, CPU, 5).tolist() == [32, 64]


def test_they_serve_inference_and_training_alike() -> None:
    with torch.inference_mode():
        assert not first_numbers(3, CPU).is_inference()
    factor = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad((factor * first_numbers(3, CPU)).sum(), factor)
    assert gradient.tolist() == [0, 1, 2]
