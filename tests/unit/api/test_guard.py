"""Who is guarded: answers without a seed, and those that ask for it."""

from pathlib import Path

import pytest

from mtad.api import Engine
from mtad.config import GenerationOptions
from mtad.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "seed", "guard"),
    [
        (GenerationOptions(), 0, "on"),
        (GenerationOptions(seed=0), 0, "off"),
        (GenerationOptions(seed=7), 7, "off"),
        (GenerationOptions(seed=7, guard="on"), 7, "on"),
        (GenerationOptions(guard="off"), 0, "off"),
        (GenerationOptions().for_measurement(), 0, "off"),
        (GenerationOptions(seed=7).for_measurement(), 7, "off"),
        (GenerationOptions(guard="on").for_measurement(), 0, "on"),
    ],
    ids=str,
)
def test_auto_guards_where_no_seed_is_given(engine: Engine, asked: GenerationOptions, seed: int, guard: str) -> None:
    resolved = engine.resolve(asked)
    assert (resolved.seed, resolved.guard) == (seed, guard)
    assert engine.resolve(resolved) == resolved


def test_a_trace_is_not_guarded(engine: Engine, tmp_path: Path) -> None:
    result = engine.generate("tell me", max_new_tokens=4, trace=tmp_path / "run.arrow")
    assert result.config["guard"] == "off"
    with pytest.raises(ConfigError, match="a trace keeps whole drafts, got guard on"):
        engine.generate("tell me", max_new_tokens=4, guard="on", trace=tmp_path / "run.arrow")
