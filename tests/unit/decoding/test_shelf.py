"""Decoders that capture or guard are handed out again; the others are built anew."""

from dataclasses import replace

import pytest
from tests.table_models import random_table

from mtad.config import GenerationOptions
from mtad.decoding import DecoderShelf
from mtad.models.table import TableRunner

EOS = frozenset({0})


class _CapturableRunner(TableRunner):
    """A table that says it can be captured; the shelf never runs it."""

    @property
    def can_be_captured(self) -> bool:
        return True


@pytest.fixture
def shelf() -> DecoderShelf:
    return DecoderShelf(_CapturableRunner(random_table(0, 5)), _CapturableRunner(random_table(1, 5)))


def test_seed_and_limits_do_not_matter(shelf: DecoderShelf) -> None:
    options = GenerationOptions()
    first = shelf.decoder(options, EOS, temperature=1.0)
    again = shelf.decoder(replace(options, seed=3, max_new_tokens=9, stop=("x",)), EOS, temperature=1.0)
    assert again is first


@pytest.mark.parametrize("change", [{"gamma": 2}, {"method": "mtad"}, {"cuda_graphs": "off"}], ids=str)
def test_another_shape_is_another_decoder(shelf: DecoderShelf, change: dict[str, object]) -> None:
    first = shelf.decoder(GenerationOptions(), EOS, temperature=1.0)
    assert shelf.decoder(replace(GenerationOptions(), **change), EOS, temperature=1.0) is not first  # type: ignore[arg-type]


def test_what_guards_is_handed_out_again_with_what_it_has_learnt(shelf: DecoderShelf) -> None:
    options = GenerationOptions(cuda_graphs="off", guard="on")
    first = shelf.decoder(options, EOS, temperature=1.0)
    assert shelf.decoder(replace(options, seed=3), EOS, temperature=1.0) is first


def test_what_does_not_capture_is_built_anew(shelf: DecoderShelf) -> None:
    options = GenerationOptions(cuda_graphs="off")
    assert shelf.decoder(options, EOS, temperature=1.0) is not shelf.decoder(options, EOS, temperature=1.0)


def test_only_so_many_are_kept(shelf: DecoderShelf) -> None:
    first = shelf.decoder(GenerationOptions(gamma=1), EOS, temperature=1.0)
    for gamma in range(2, 11):
        shelf.decoder(GenerationOptions(gamma=gamma), EOS, temperature=1.0)
    assert shelf.decoder(GenerationOptions(gamma=1), EOS, temperature=1.0) is not first
