"""The law of whole answers, by many seeds in one batch.

Each comparison fails for a correct decoder with odds below 1e-9 (Weissman et al. 2003); the seeds are fixed.
"""

import math

import pytest
from tests.oracles import Path, all_paths, empirical_distance, largest_distance, sequence_log_probs
from tests.table_models import Run, random_table, table_law

from mtad.structures import RowSettings

MANY, LENGTH, VOCAB, PROMPT = 12_000, 3, 3, [1, 2]
ODDS = 1e-9
SETTINGS = [RowSettings(), RowSettings(temperature=0.7, top_k=2), RowSettings(temperature=1.5, top_p=0.8)]


def answers(run: Run, setting: RowSettings) -> list[Path]:
    decoder = run.decoder()
    settings = [
        RowSettings(
            seed=seed,
            temperature=setting.temperature,
            top_k=setting.top_k,
            top_p=setting.top_p,
            threshold=setting.threshold,
        )
        for seed in range(MANY)
    ]
    decoder.prefill([PROMPT] * MANY, settings, [LENGTH] * MANY)
    found: list[list[int]] = [[] for _ in range(MANY)]
    while any(len(answer) < LENGTH for answer in found):
        active = [len(answer) < LENGTH for answer in found]
        for answer, outcome in zip(found, decoder.step(active), strict=True):
            answer.extend(outcome.tokens if outcome else [])
    return [tuple(answer[:LENGTH]) for answer in found]


def distance_to_the_target(run: Run, setting: RowSettings) -> float:
    law = table_law(run.target, PROMPT, setting)
    cells = {path: math.exp(sum(sequence_log_probs(law, path))) for path in all_paths(VOCAB, LENGTH)}
    assert sum(cells.values()) == pytest.approx(1)
    return empirical_distance(answers(run, setting), cells)


@pytest.mark.parametrize("method", ["autoregressive", "speculative"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_lossless_methods_follow_the_law_of_the_target(method: str, setting: RowSettings) -> None:
    run = Run(random_table(1, VOCAB, 2), random_table(2, VOCAB, 2), {"method": method, "gamma": 2})
    assert distance_to_the_target(run, setting) < largest_distance(VOCAB**LENGTH, MANY, ODDS)


def test_the_comparison_would_notice_another_law() -> None:
    run = Run(random_table(1, VOCAB, 2), random_table(2, VOCAB, 2), {"method": "mmtad", "gamma": 2, "beam_width": 2})
    assert distance_to_the_target(run, RowSettings()) > 2 * largest_distance(VOCAB**LENGTH, MANY, ODDS)
