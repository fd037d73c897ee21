"""Rows that draft less: the law of lossless rules stays, rows do not meddle with each other, and effort is saved."""

from typing import Any

import pytest
import torch
from tests.table_models import Run, random_table
from tests.unit.decoding.test_batching import check_same, random_batch

from mtad.config import GenerationOptions
from mtad.decoding import resolve_pair
from mtad.decoding.draft_length import AdaptiveLength
from mtad.decoding.outcome import RowOutcome
from mtad.errors import ConfigError
from mtad.structures import RowSettings

WAYS: list[dict[str, Any]] = [
    {"method": "speculative", "gamma": 4},
    {"method": "speculative", "verifier": "block", "gamma": 4},
    {"method": "mtad", "gamma": 4, "beam_width": 3, "draw": "top"},
    {"method": "mtad", "gamma": 4, "beam_width": 3, "draw": "gumbel"},
    {"method": "mmtad", "gamma": 4, "beam_width": 3, "draw": "sample"},
    {"method": "mmtad", "gamma": 4, "beam_width": 3, "drafter": "dynamic_tree"},
    {"method": "mmtad", "drafter": "branching_tree", "verifier": "traversal", "branching": "2,2,1"},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("confidence", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_row_of_a_batch_drafts_as_it_would_alone(way: dict[str, Any], confidence: float, seed: int) -> None:
    options = way | {"draft_length": "adaptive", "draft_level_cost": 0.3}
    run = Run(random_table(1, 5, 3), random_table(2, 5, 3), options)
    prompts, settings, limits = random_batch(seed, None)
    confident = [
        RowSettings(
            seed=item.seed,
            temperature=item.temperature,
            top_k=item.top_k,
            top_p=item.top_p,
            threshold=item.threshold,
            draft_confidence=confidence * (row % 3),
        )
        for row, item in enumerate(settings)
    ]
    for row, result in enumerate(run.generate(prompts, confident, limits)):
        check_same(run.generate([prompts[row]], [confident[row]], [limits[row]])[0], result)


def test_a_bad_draft_is_shortened_and_a_good_one_is_not() -> None:
    target = random_table(3, 5, 2, scale=3)
    settings = [RowSettings(seed=seed) for seed in range(4)]
    lengths = {}
    for name, draft in (("good", target), ("bad", random_table(9, 5, 2, scale=3))):
        run = Run(target, draft, {"method": "speculative", "gamma": 6, "draft_length": "adaptive"})
        results = run.generate([[1], [2], [3], [0]], settings, [80] * 4)
        lengths[name] = [max(result.accepted_lengths[10:]) for result in results]
    assert min(lengths["good"]) == 6
    assert max(lengths["bad"]) <= 3


def test_drafts_stop_below_an_unsure_node() -> None:
    tables = random_table(4, 5, 1, scale=0.01), random_table(5, 5, 1, scale=0.01)
    for way in WAYS:
        run = Run(*tables, way)
        # Every token has a probability of about 0.2, so a second level hangs below an unsure node.
        unsure = run.generate([[1]] * 6, [RowSettings(seed=seed, draft_confidence=0.5) for seed in range(6)], [30] * 6)
        assert max(max(result.accepted_lengths) for result in unsure) == 1, way
        free = run.generate([[1]] * 6, [RowSettings(seed=seed) for seed in range(6)], [30] * 6)
        assert max(max(result.accepted_lengths) for result in free) > 1, way


def test_an_unsure_draft_calls_its_model_less(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtad.models.table import TableRunner

    calls: list[int] = []
    score_level = TableRunner.score_level
    monkeypatch.setattr(
        TableRunner,
        "score_level",
        lambda self, tokens, ancestors, first_node, depth: (
            calls.append(depth) or score_level(self, tokens, ancestors, first_node, depth)  # type: ignore[func-returns-value]
        ),
    )
    table = random_table(4, 5, 1, scale=0.01)
    for way in WAYS[:5]:
        calls.clear()
        Run(table, table, way).generate([[1]], [RowSettings(draft_confidence=0.5)], [12])
        assert not calls, way


def kept(count: int) -> RowOutcome:
    return RowOutcome(tokens=[], num_drafted=count, log_probs=[], joint_log_ratio=0.0, target_calls=1)


def test_the_depth_follows_what_was_kept() -> None:
    length = AdaptiveLength(5, 0.2)
    length.start(1)
    for _ in range(40):
        length.note([kept(0)])
    assert length._limits == [1]
    for _ in range(60):
        length.note([kept(length._limits[0])])
    assert length._limits == [5]


def test_idle_rows_learn_nothing_and_rows_keep_their_own_past() -> None:
    length = AdaptiveLength(4, 0.1)
    length.start(3)
    for _ in range(30):
        length.note([kept(0), None, kept(length._limits[2])])
    before = list(length._limits)
    assert before[0] < before[1] <= before[2]
    length.select_rows([2, 0])
    assert length._limits == [before[2], before[0]]


def test_methods_without_a_draft_take_no_length() -> None:
    with pytest.raises(ConfigError, match="mtjd takes no adaptive draft_length"):
        resolve_pair(GenerationOptions(method="mtjd", draft_length="adaptive"))
    with pytest.raises(ConfigError, match="beam_sampling takes no adaptive draft_length"):
        resolve_pair(GenerationOptions(method="beam_sampling", draft_confidence=0.1))


def test_limits_of_unequal_rows_are_held() -> None:
    from tests.table_models import controls

    from mtad.drafting import limit_tree
    from mtad.drafting.chain import chain_tree

    joint = torch.tensor([[0.9, 0.5, 0.4], [0.9, 0.5, 0.4]]).log()
    tree = chain_tree(torch.zeros(2, 3, dtype=torch.int64), joint)
    rows = controls(RowSettings(), RowSettings(draft_confidence=0.6)).limited([1, 3])
    assert limit_tree(tree, rows).valid.tolist() == [[True, False, False], [True, True, False]]
