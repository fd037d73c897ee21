"""Inside strict spans every token is the target's own; outside the rule of choice goes on."""

from typing import Any

import pytest
from tests.table_models import Run, letters, random_table
from tests.unit.decoding.test_batching import check_same, random_batch

from mtad.config import GenerationOptions
from mtad.decoding import build_decoder
from mtad.decoding.strict_spans import SpanScanner, SpanVocabulary, build_scanner
from mtad.errors import ConfigError
from mtad.models.table import TableRunner
from mtad.structures import RowSettings

TABLES = random_table(1, 5, 2), random_table(2, 5, 2)
LAX: list[dict[str, Any]] = [
    {"method": "mmtad", "gamma": 3, "beam_width": 3},
    {"method": "mtad", "gamma": 4, "beam_width": 2},
    {"method": "mmtad", "verifier": "typical", "typical_epsilon": 0.01, "gamma": 3, "beam_width": 3},
]


def inside(scanner: SpanScanner, *pieces: str) -> list[bool]:
    states = []
    for piece in pieces:
        scanner.feed(piece)
        states.append(scanner.is_inside)
    return states


def test_fences_open_and_close_across_pieces() -> None:
    assert inside(build_scanner("code"), "see `x` ", "``", "`py\nprint()", "``", "`", " done ``` a ``` b") == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_json_closes_with_its_last_bracket() -> None:
    assert inside(build_scanner("json"), '{"a": [1', ", 2]", ', "b": "}\\"}"', "}", " [", "]}") == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]


def test_named_delimiters_do_not_nest() -> None:
    assert inside(build_scanner("<t>,</t>"), "<t", "><t>x</", "t>", "</t><t>") == [False, True, False, True]


def test_openers_are_the_tokens_that_may_complete_one() -> None:
    vocabulary = SpanVocabulary.of(["a", "``", "x`y", "{", ">"], ("code", "<t>,</t>"), "cpu")
    assert vocabulary.openers.tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("way", LAX, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_strict_tokens_are_the_targets_own(way: dict[str, Any], temperature: float) -> None:
    run = Run(*TABLES, way | {"strict": ("a,d",)}, temperature=temperature)
    alone = Run(*TABLES, {"method": "autoregressive"}, temperature=temperature)
    num_strict = num_others_differ = 0
    for seed in range(3):
        setting = RowSettings(seed=seed, temperature=temperature, threshold=1e-9)
        prompt = [seed % 5, 2]
        result = run.generate([prompt], [setting], [40])[0]
        scanner, end = build_scanner("a,d"), 0
        for kept in result.accepted_lengths:
            was_strict, start, end = scanner.is_inside, end, min(end + kept + 1, 40)
            for index in range(start, end):
                own = alone.generate([[*prompt, *result.token_ids[:index]]], [setting], [1])[0].token_ids[0]
                # Behind a kept opener comes the target's own token, drawn for the iteration and not for its place.
                assert not scanner.is_inside or was_strict or result.provenance[index] == "target"
                assert result.token_ids[index] == own or not was_strict
                num_strict += was_strict
                num_others_differ += result.token_ids[index] != own
                scanner.feed(letters([result.token_ids[index]]))
    assert num_strict > 20
    assert num_others_differ > 10 or temperature == 0


@pytest.mark.parametrize("way", LAX, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_row_of_a_batch_is_the_row_alone(way: dict[str, Any], seed: int) -> None:
    run = Run(*TABLES, way | {"strict": ("b,d", "a,e")})
    prompts, settings, limits = random_batch(seed, None)
    for row, result in enumerate(run.generate(prompts, settings, limits)):
        check_same(run.generate([prompts[row]], [settings[row]], [limits[row]])[0], result)


@pytest.mark.parametrize("kind", ["python", "a,", ",b", ""])
def test_unknown_spans_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="strict must be code, json, or two texts"):
        GenerationOptions(strict=(kind,))


def test_spans_need_texts() -> None:
    target, draft = (TableRunner(table) for table in TABLES)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        build_decoder(GenerationOptions(strict=("code",)), target, draft, frozenset(), temperature=1.0)
