"""Fallback and rollback against a slow version and the stated bound."""

import math

import numpy as np
import pytest
from tests.enumeration import Drafts, chain_drafts, random_law
from tests.oracles import Law, Path
from tests.table_models import Run, controls, random_table

from mtad.structures import RowSettings
from mtad.verification import BigLittleVerifier

TARGET, DRAFT = random_law(1, 5, zeros=0.2), random_law(2, 5)


def drafts() -> Drafts:
    return chain_drafts(TARGET, DRAFT, 5, 3)


def big_little_rule(target: Law, draft: Law, path: Path, fallback: float, rollback: float) -> int:
    """Tokens kept of a drafted path."""
    for kept, token in enumerate(path):
        if math.exp(draft(path[:kept]).max()) < fallback:
            return kept
        if -target(path[:kept])[token] > rollback:
            return kept
    return len(path)


@pytest.mark.parametrize("fallback", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("rollback", [0.0, 0.5, 2.0, 5.0])
def test_it_keeps_what_the_slow_version_keeps(fallback: float, rollback: float) -> None:
    asked = drafts()
    paths = [tuple(path) for path in asked.tree.tokens.tolist()]
    rows = controls(*[RowSettings(seed=row, temperature=row % 2) for row in range(len(paths))])
    acceptance = BigLittleVerifier(fallback, rollback).accept(asked.tree, asked.target_log_probs, rows)
    expected = [big_little_rule(TARGET, DRAFT, path, fallback, rollback) for path in paths]
    assert acceptance.num_accepted.tolist() == expected
    for row, kept in enumerate(expected):
        assert acceptance.path_nodes[row].tolist() == [*range(kept), *[-1] * (3 - kept)]


def test_every_kept_token_is_within_both_bounds() -> None:
    asked = drafts()
    rows = controls(*[RowSettings(seed=row) for row in range(len(asked.weights))])
    acceptance = BigLittleVerifier(0.4, 1.5).accept(asked.tree, asked.target_log_probs, rows)
    lengths = acceptance.num_accepted.tolist()
    assert set(lengths) == {0, 1, 2, 3}
    for row, length in enumerate(lengths):
        path = tuple(asked.tree.tokens[row].tolist())
        for end in range(length):
            assert math.exp(DRAFT(path[:end]).max()) >= 0.4
            assert -TARGET(path[:end])[path[end]] <= 1.5


def test_tokens_behind_an_invalid_one_are_not_kept() -> None:
    asked = drafts()
    asked.tree.valid[:, 1:] = False
    rows = controls(*[RowSettings(seed=row) for row in range(len(asked.weights))])
    acceptance = BigLittleVerifier(0.0, 100.0).accept(asked.tree, asked.target_log_probs, rows)
    assert acceptance.num_accepted.max() == 1


def test_the_next_token_is_the_targets_own() -> None:
    asked = drafts()
    rows = controls(*[RowSettings(seed=row, temperature=0) for row in range(len(asked.weights))])
    acceptance = BigLittleVerifier(0.4, 1.5).accept(asked.tree, asked.target_log_probs, rows)
    for row, length in enumerate(acceptance.num_accepted.tolist()):
        path = tuple(asked.tree.tokens[row, :length].tolist())
        assert int(acceptance.next_tokens[row]) == TARGET(path).argmax()


def test_looser_thresholds_keep_more() -> None:
    target, draft = random_table(3, 6), random_table(4, 6)
    per_call = []
    for fallback, rollback in ((1.0, 5.0), (0.6, 0.5), (0.3, 2.0), (0.0, 50.0)):
        options = {"method": "speculative", "verifier": "big_little", "gamma": 3}
        run = Run(target, draft, {**options, "fallback_threshold": fallback, "rollback_threshold": rollback})
        results = run.generate([[1]] * 50, [RowSettings(seed=seed) for seed in range(50)], [28] * 50)
        per_call.append(float(np.mean([result.stats.tokens_per_call for result in results])))
    assert per_call == sorted(per_call)
    assert per_call[0] == 1
    assert per_call[-1] == 4
