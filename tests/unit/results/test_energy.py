"""Joules per token, net of idle power, against speculative sampling."""

import pytest
from tests.unit.results.energy_records import phase, record, sample

from mtad.results.energy import choose_baseline, joule_format, summarize_energy


def test_joules_are_summed_over_scopes_and_shared_out_among_tokens() -> None:
    samples = [sample("mmtad", repeat, watts) for repeat, watts in enumerate((190.0, 290.0, 390.0))]
    (row,) = summarize_energy(record(samples))
    assert row.joules_per_token is not None
    assert row.joules_per_token.value == pytest.approx(30)
    assert (row.joules_per_token.low, row.joules_per_token.high) == pytest.approx((20, 40))
    assert row.net_joules_per_token is not None
    assert row.net_joules_per_token.value == pytest.approx(30 - 6.4)
    assert row.joules_per_answer == pytest.approx(3 * 3000 / 15)
    assert row.joules_by_scope == pytest.approx({"gpu": 29, "dram": 1})
    assert row.watts == pytest.approx(300)
    assert (row.tokens_per_s.value, row.busy_share, row.tokens_per_call) == (20, 0.5, 2)
    assert row.perplexity == pytest.approx(2.718281828)
    assert row.latency_s == 2
    assert row.saving is None
    assert row.reason is None


def test_savings_are_taken_on_the_same_repeat() -> None:
    ours = [sample("mmtad", repeat, watts) for repeat, watts in enumerate((90.0, 190.0))]
    theirs = [sample("speculative", repeat, watts) for repeat, watts in enumerate((140.0, 290.0, 9990.0))]
    rows = {row.label: row for row in summarize_energy(record(theirs + ours))}
    assert list(rows) == ["speculative", "mmtad"]
    saving = rows["mmtad"].saving
    assert saving is not None
    assert saving.value == pytest.approx(1.5)
    assert rows["speculative"].saving is not None
    assert rows["speculative"].saving.value == 1


def test_one_window_without_joules_leaves_the_contender_unmeasured() -> None:
    broken = sample("mmtad", 1, 190.0)
    broken["reading"] |= {"joules": {"dram": 5.0}, "not_measured": {"gpu": "the GPU is lost"}}
    (row,) = summarize_energy(record([sample("mmtad", 0, 190.0), broken]))
    assert (row.joules_per_token, row.joules_per_answer, row.watts, row.joules_by_scope) == (None, None, None, {})
    assert row.reason == "the GPU is lost"
    assert row.tokens_per_s.value == 20


def test_without_idle_power_there_is_no_net_figure() -> None:
    item = sample("mmtad", 0, 190.0)
    item["reading"]["idle_watts"] = {"gpu": 60.0}
    (row,) = summarize_energy(record([item]))
    assert row.joules_per_token is not None
    assert row.net_joules_per_token is None


def test_without_a_meter_the_reason_is_the_meters() -> None:
    item = sample("mmtad", 0, 190.0)
    item["reading"] |= {"joules": {}, "idle_watts": {}}
    (row,) = summarize_energy(record([item], scopes=[], reason="no counter here"))
    assert (row.joules_per_token, row.reason) == (None, "no counter here")


def test_phases_are_those_of_the_same_batch() -> None:
    phases = [
        phase("mmtad", "draft", 4.0),
        phase("mmtad", "score", 10.0),
        phase("mmtad", "score", 99.0, batch_size=8),
        phase("speculative", "score", 77.0),
    ]
    (row,) = summarize_energy(record([sample("mmtad", 0, 190.0)], phases))
    assert (row.draft_joules, row.score_joules) == pytest.approx((0.2, 0.5))
    assert (row.draft_ms, row.score_ms) == pytest.approx((100, 100))


def test_the_baseline_is_speculative_sampling_where_it_takes_part() -> None:
    assert choose_baseline(["autoregressive", "speculative:gamma=6", "mmtad"]) == "speculative:gamma=6"
    assert choose_baseline(["mmtad", "mtad"]) == "mmtad"


def test_joules_of_every_size_have_about_four_digits() -> None:
    shown = [f"{value:{joule_format(value)}}" for value in (0.01234, 2.3456, -45.678, 211.0657, 6714.68)]
    assert shown == ["0.0123", "2.346", "-45.68", "211.1", "6714.7"]
