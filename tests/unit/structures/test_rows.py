"""Per-row settings on the device."""

import math
from dataclasses import dataclass

import pytest
import torch
from tests.table_models import controls
from torch import Tensor

from mtad.structures import RowSettings
from mtad.structures.rows import merge_rows

MIXED = (
    RowSettings(seed=3, temperature=0.5, top_k=4, top_p=0.9, threshold=1.0),
    RowSettings(seed=2**62, temperature=0, top_k=9, top_p=0.5, threshold=0.25),
    RowSettings(),
)


def test_columns_hold_one_value_per_row() -> None:
    rows = controls(*MIXED)
    assert rows.seeds.tolist() == [3, 2**62, 0]
    assert rows.positions.tolist() == [0, 0, 0]
    assert rows.is_greedy.tolist() == [False, True, False]
    assert rows.temperatures.tolist() == [0.5, 1, 1]
    assert rows.log_thresholds.tolist() == pytest.approx([0, math.log(0.25), math.log(0.5)])


def test_temperature_zero_becomes_a_warp() -> None:
    unfiltered, one_hot = controls(*MIXED), controls(*MIXED, one_hot_at_zero=True)
    assert unfiltered.top_ks.tolist() == [4, 0, 0]
    assert one_hot.top_ks.tolist() == [4, 1, 0]
    assert unfiltered.top_ps.tolist() == pytest.approx([0.9, 1, 1])
    assert one_hot.is_greedy.tolist() == unfiltered.is_greedy.tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((RowSettings(),), (0, False, False)),
        ((RowSettings(top_k=3), RowSettings(top_k=7)), (7, True, False)),
        ((RowSettings(top_k=3), RowSettings(top_p=0.5)), (0, True, True)),
    ],
)
def test_the_host_knows_which_filters_are_needed(
    settings: tuple[RowSettings, ...], expected: tuple[int, bool, bool]
) -> None:
    rows = controls(*settings)
    assert (rows.max_top_k, rows.has_some_top_k, rows.has_top_p) == expected


def test_select_and_at_keep_everything_else() -> None:
    rows = controls(*MIXED).at(torch.tensor([5, 6, 7])).select(torch.tensor([2, 0]))
    assert rows.seeds.tolist() == [0, 3]
    assert rows.positions.tolist() == [7, 5]
    assert rows.top_ks.tolist() == [0, 4]
    assert rows.has_top_p


@dataclass
class Inner:
    first: Tensor
    second: Tensor | None = None


@dataclass
class Outer:
    inner: Inner
    last: Tensor


def test_nouns_are_merged_row_by_row() -> None:
    ours = Outer(Inner(torch.zeros(3, 2), torch.ones(3)), torch.tensor([1, 2, 3]))
    theirs = Outer(Inner(torch.ones(3, 2)), torch.tensor([7, 8, 9]))
    merged = merge_rows(torch.tensor([True, False, True]), ours, theirs)
    assert merged.inner.first.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert merged.inner.second is None
    assert merged.last.tolist() == [1, 8, 3]
