"""Values are taken apart into tensors and the rest, and put together again."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mtad.models.step_parts import put_together, shapes_of, take_apart
from mtad.sampling import Stream
from mtad.structures import RowControls, RowSettings


@dataclass(frozen=True, slots=True)
class _Pair:
    first: Tensor
    rest: object


class _Rule:
    def __init__(self, bound: float, table: Tensor) -> None:
        self.bound = bound
        self.table = table


def test_what_is_put_together_has_the_new_tensors_and_the_old_rest() -> None:
    value = (_Pair(torch.zeros(2), [None, 3, Stream.DRAFT, "top", (torch.ones(1),)]), _Rule(0.5, torch.arange(3)))
    tensors: list[Tensor] = []
    spec = take_apart(value, tensors)
    assert [tensor.tolist() for tensor in tensors] == [[0, 0], [1], [0, 1, 2]]
    pair, rule = put_together(spec, iter([tensor + 5 for tensor in tensors]))
    assert isinstance(pair, _Pair)
    assert pair.first.tolist() == [5, 5]
    assert pair.rest[:4] == [None, 3, Stream.DRAFT, "top"]  # type: ignore[index]
    assert pair.rest[4][0].tolist() == [6]  # type: ignore[index]
    assert isinstance(rule, _Rule)
    assert (rule.bound, rule.table.tolist()) == (0.5, [5, 6, 7])


@pytest.mark.parametrize(
    ("left", "right", "is_same"),
    [
        (_Rule(0.5, torch.zeros(1)), _Rule(0.5, torch.ones(1)), True),
        (_Rule(0.5, torch.zeros(1)), _Rule(0.6, torch.zeros(1)), False),
        (1, True, False),
        ([1], (1,), False),
        (None, torch.zeros(1), False),
    ],
)
def test_specs_are_equal_where_one_program_serves_both(left: object, right: object, is_same: bool) -> None:
    specs = [take_apart(value, []) for value in (left, right)]
    assert (specs[0] == specs[1] and hash(specs[0]) == hash(specs[1])) is is_same


def test_rows_of_another_seed_and_position_need_no_other_program() -> None:
    specs = []
    for seed, position in ((1, 0), (2, 9)):
        settings = [RowSettings(seed=seed, temperature=seed / 2, top_k=5, top_p=0.9)]
        rows = RowControls.from_settings(settings, one_hot_at_zero=False).at(torch.tensor([position]))
        tensors: list[Tensor] = []
        specs.append((take_apart(rows, tensors), shapes_of(tensors)))
    assert specs[0] == specs[1]


def test_how_a_tensor_lies_matters() -> None:
    plain = torch.zeros(3, 3)
    assert shapes_of([plain]) != shapes_of([plain.T[:, :2]])
    assert shapes_of([plain]) != shapes_of([plain.double()])
    assert shapes_of([plain]) == shapes_of([torch.ones(3, 3)])
