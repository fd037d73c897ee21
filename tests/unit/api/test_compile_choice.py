"""Whose steps are compiled: those of answers without a seed on CUDA, and those that ask for it."""

import pytest

from mtad.api import Engine
from mtad.config import GenerationOptions


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_cuda"),
    [
        (GenerationOptions(), "off", "off"),
        (GenerationOptions(compile="auto"), "off", "background"),
        (GenerationOptions(compile="auto", seed=0), "off", "off"),
        (GenerationOptions(seed=0, compile="on"), "on", "on"),
        (GenerationOptions(compile="off"), "off", "off"),
        (GenerationOptions(compile="background"), "background", "background"),
        (GenerationOptions(compile="auto").for_measurement(), "off", "off"),
        (GenerationOptions(compile="on").for_measurement(), "on", "on"),
    ],
    ids=str,
)
def test_auto_compiles_in_the_background_where_nothing_is_to_be_repeated(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, asked: GenerationOptions, on_cpu: str, on_cuda: str
) -> None:
    resolved = engine.resolve(asked)
    assert resolved.compile == on_cpu
    assert engine.resolve(resolved) == resolved
    monkeypatch.setattr(engine.models.target, "device", _Elsewhere())
    assert engine.resolve(asked).compile == on_cuda


class _Elsewhere:
    type = "cuda"
