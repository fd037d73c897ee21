"""Requests come when the pattern says, and the window holds all of them."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.tiny_engine import tiny_engine
from tests.unit.energy.fakes import FakeTime

from mtad.api import Engine
from mtad.bench.arrivals import PATTERNS, Schedule, plan_arrivals, serve, warm_up
from mtad.config import GenerationOptions

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
OPTIONS = GenerationOptions(method="mtad", gamma=2, beam_width=2, max_new_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


def test_steady_requests_come_one_by_one_at_their_share_of_the_speed() -> None:
    schedule = plan_arrivals(PATTERNS["steady"], batch_size=4, service_s=2.8, window_s=5)
    assert list(schedule.times) == [0, 1, 2, 3, 4]
    assert schedule.seconds == 5


def test_bursts_are_twice_the_batch_at_the_same_mean_rate() -> None:
    schedule = plan_arrivals(PATTERNS["bursty"], batch_size=4, service_s=2.8, window_s=5)
    assert list(schedule.times) == [0] * 8
    assert schedule.seconds == pytest.approx(8)
    assert list(plan_arrivals(PATTERNS["bursty"], 1, 0.35, 1.5).times) == [0, 0, 1, 1]


def test_idle_requests_leave_the_machine_alone_most_of_the_time() -> None:
    schedule = plan_arrivals(PATTERNS["idle"], batch_size=1, service_s=0.5, window_s=5)
    assert [*schedule.times, schedule.seconds] == [0, 5]
    assert len(plan_arrivals(PATTERNS["idle"], 1, 0.5, 12).times) == 3


def stepping(session: Any, time: FakeTime, step_s: float) -> Callable[[], Any]:
    """The session's step, which takes so many seconds of a fake time."""
    step = session.step

    def slow() -> Any:
        time.sleep(step_s)
        return step()

    return slow


def test_requests_are_submitted_at_their_times_and_the_rest_is_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime()
    with engine.session(max_rows=2, max_tokens=40) as session:
        moments: list[float] = []
        submit = session.submit

        def note(*parts: Any) -> int:
            moments.append(time() - 100)
            return submit(*parts)

        monkeypatch.setattr(session, "submit", note)
        monkeypatch.setattr(session, "step", stepping(session, time, 0.1))
        served = serve(session, PROMPTS, OPTIONS, Schedule((0, 0, 30), 60), clock=time, sleep=time.sleep)
    assert moments == [0, 0, 30]
    assert served.seconds == pytest.approx(60)
    assert served.busy_s == pytest.approx(0.1 * served.num_iterations)
    assert served.busy_s < 5
    assert [result.stats.num_tokens for result in served.results] == [6, 6, 6]
    assert all(0.1 < latency < 3 for latency in served.latencies_s)


def test_a_slow_machine_makes_the_window_longer_and_waiting_counts_as_latency(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime()
    with engine.session(max_rows=1, max_tokens=40) as session:
        monkeypatch.setattr(session, "step", stepping(session, time, 5))
        served = serve(session, PROMPTS, OPTIONS, Schedule((0, 1, 2), 3), clock=time, sleep=time.sleep)
    assert served.seconds == pytest.approx(5 * served.num_iterations)
    assert served.busy_s == pytest.approx(served.seconds)
    first, second, third = served.latencies_s
    assert first < second < third
    assert third == pytest.approx(served.seconds - 2)


def test_a_warm_up_leaves_an_empty_session(engine: Engine) -> None:
    with engine.session(max_rows=3, max_tokens=40) as session:
        warm_up(session, PROMPTS, OPTIONS)
        assert (session.num_running, session.num_waiting, session.step()) == (0, 0, [])
