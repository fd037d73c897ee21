"""Profiles add up, and operations fall into the kinds that their names say."""

import pytest

from mtad.bench.profile import COLUMNS, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matmuls"),
        ("mkldnn::_linear_pointwise", "matmuls"),
        ("aten::scaled_dot_product_attention", "attention"),
        ("aten::index_put_", "copies"),
        ("aten::_to_copy", "copies"),
        ("aten::topk", "sampling"),
        ("aten::log_softmax", "sampling"),
        ("aten::mul", "other operations"),
        ("aten::silu", "other operations"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
    assert kind in COLUMNS
