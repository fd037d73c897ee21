"""Bounds of every setting, and the sentence each violation gives."""

import dataclasses
import math
from typing import Any

import pytest

from mtad.config import GenerationOptions, ModelOptions, replace_settings, setting_fields
from mtad.errors import ConfigError

METHODS = ", ".join(next(item for item in setting_fields(GenerationOptions) if item.name == "method").choices or ())


def error_of(**options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        GenerationOptions(**options)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, f"method must be one of {METHODS}, got 'magic'"),
        ({"method": 3}, "method must be text, got 3"),
        ({"drafter": 1}, "drafter must be text, got 1"),
        ({"verifier": True}, "verifier must be text, got True"),
        ({"gamma": 0}, "gamma must be a whole number >= 1 and <= 64, got 0"),
        ({"gamma": 65}, "gamma must be a whole number >= 1 and <= 64, got 65"),
        ({"gamma": 2.0}, "gamma must be a whole number >= 1 and <= 64, got 2.0"),
        ({"gamma": True}, "gamma must be a whole number >= 1 and <= 64, got True"),
        ({"gamma": None}, "gamma must be a whole number >= 1 and <= 64, got None"),
        ({"beam_width": 0}, "beam_width must be a whole number >= 1 and <= 64, got 0"),
        ({"beam_width": 65}, "beam_width must be a whole number >= 1 and <= 64, got 65"),
        ({"threshold": 0}, "threshold must be a number > 0 and <= 1, got 0"),
        ({"threshold": 1.01}, "threshold must be a number > 0 and <= 1, got 1.01"),
        ({"threshold": math.nan}, "threshold must be a number > 0 and <= 1, got nan"),
        ({"threshold": "0.5"}, "threshold must be a number > 0 and <= 1, got '0.5'"),
        ({"draw": "lots"}, "draw must be one of top, gumbel, sample, got 'lots'"),
        ({"temperature": -0.1}, "temperature must be a number >= 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a number >= 0, got nan"),
        ({"temperature": False}, "temperature must be a number >= 0, got False"),
        ({"top_k": -1}, "top_k must be a whole number >= 0, got -1"),
        ({"top_k": 1.5}, "top_k must be a whole number >= 0, got 1.5"),
        ({"top_p": 0.0}, "top_p must be a number > 0 and <= 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be a number > 0 and <= 1, got 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"stop": "END"}, "stop must be a list of text, got 'END'"),
        ({"stop": (1,)}, "stop must be a list of text, got (1,)"),
        ({"stop": ("END", "")}, "stop must not hold empty text; leave the setting out instead"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false, got 1"),
        ({"seed": -1}, "seed must be a whole number >= 0 and <= 4.61169e+18, got -1"),
        ({"seed": 2**63}, f"seed must be a whole number >= 0 and <= 4.61169e+18, got {2**63}"),
        ({"search_budget": 0}, "search_budget must be a whole number >= 1, got 0"),
    ],
    ids=str,
)
def test_each_violation_is_named(options: dict[str, Any], message: str) -> None:
    assert error_of(**options) == message


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 64, "beam_width": 1},
        {"gamma": 1, "beam_width": 64},
        {"threshold": 1},
        {"threshold": 1e-30},
        {"temperature": 0},
        {"temperature": 0.0},
        {"top_k": 0},
        {"top_p": 1},
        {"max_new_tokens": 1},
        {"stop": ("a", "b")},
        {"seed": 2**62},
        {"temperature": None, "top_k": None, "top_p": None, "drafter": None},
    ],
    ids=str,
)
def test_the_bounds_themselves_are_allowed(options: dict[str, Any]) -> None:
    made = GenerationOptions(**options)
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mmtad"},
        {"method": "mtad"},
        {"method": "mtjd"},
        {"method": "dynamic_beam"},
        {"method": "speculative", "drafter": "beam"},
    ],
)
def test_a_beam_tree_must_fit_its_nodes(options: dict[str, Any]) -> None:
    GenerationOptions(gamma=8, beam_width=8, **options)
    assert error_of(gamma=13, beam_width=5, **options) == (
        "gamma * beam_width must be <= 64 tree nodes, got 13 * 5 = 65; lower one of them"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"method": "speculative"},
        {"method": "autoregressive"},
        {"method": "beam_sampling"},
        {"method": "mmtad", "drafter": "chain"},
    ],
)
def test_methods_without_a_beam_tree_have_no_such_limit(options: dict[str, Any]) -> None:
    assert not GenerationOptions(gamma=64, beam_width=64, **options).uses_beams


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationOptions().gamma = 3  # type: ignore[misc]


@pytest.mark.parametrize("config", [GenerationOptions, ModelOptions])
def test_every_field_is_a_setting_with_a_valid_default_and_help(config: type) -> None:
    settings = {item.name: item for item in setting_fields(config)}
    assert list(settings) == [item.name for item in dataclasses.fields(config)]
    for item in settings.values():
        item.check(item.default)
        assert item.help
        assert not item.help.endswith(".")


def test_model_options_are_checked_too() -> None:
    with pytest.raises(
        ConfigError, match=r"^dtype must be one of auto, bfloat16, float16, float32, float64, got 'int8'$"
    ):
        ModelOptions(dtype="int8")


def test_changes_are_merged_and_checked() -> None:
    base = GenerationOptions(gamma=3)
    changed = replace_settings(base, {"beam_width": 2, "stop": ["a", "b"]}, "a file")
    assert (changed.gamma, changed.beam_width, changed.stop) == (3, 2, ("a", "b"))
    assert base.beam_width == GenerationOptions().beam_width
    with pytest.raises(ConfigError, match=r"^gamma must be"):
        replace_settings(base, {"gamma": 0}, "a file")
    with pytest.raises(ConfigError, match="tree nodes"):
        replace_settings(base, {"beam_width": 40}, "a file")


def test_an_unknown_key_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        replace_settings(GenerationOptions(), {"gama": 3, "zeta": 1}, "settings.toml")
    assert str(error.value).startswith("unknown setting 'gama' in settings.toml; known settings are method, drafter,")
    assert "beam_width" in str(error.value)
