"""Minutes that fill, and how long a client has to wait."""

import pytest

from mtad.server.open_answers import OpenAnswers
from mtad.server.rate_limits import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_worth_is_there_and_then_comes_evenly() -> None:
    clock = Clock()
    limit = RateLimit(30, clock)
    for _ in range(30):
        assert limit.wait("me", 1) == 0
        limit.take("me", 1)
    assert limit.wait("me", 1) == pytest.approx(2)
    assert limit.wait("you", 1) == 0
    clock.now += limit.wait("me", 1)
    assert limit.wait("me", 1) == 0


def test_a_debt_is_paid_first_and_what_never_fits_waits_for_a_full_minute() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    assert limit.wait("me", 500) == 0
    limit.take("me", 80)
    assert limit.wait("me", 1) == pytest.approx(21)
    assert limit.wait("me", 500) == pytest.approx(80)
    clock.now += 1e6
    assert limit.wait("me", 60) == 0
    assert limit.wait("me", 61) == 0


def test_no_limit_is_no_limit() -> None:
    limit = RateLimit(None)
    limit.take("me", 1e9)
    assert limit.wait("me", 1e9) == 0


def test_many_clients_are_forgotten_unless_they_owe() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    limit.take("owes", 1e6)
    for number in range(5000):
        limit.take(f"client {number}", 1)
        clock.now += 1.0
        limit.wait(f"client {number}", 1)
    assert len(limit._buckets) <= 1025
    assert limit.wait("owes", 1) > 0


def test_open_answers_leave_a_share_for_others() -> None:
    answers = OpenAnswers(4)
    with answers.hold("flood", 4):
        assert not answers.has_room("flood", 1)
        assert answers.has_room("calm", 2)
        assert not answers.has_room("calm", 3)
        with answers.hold("calm", 2):
            assert not answers.has_room("calm", 1)
            assert answers.has_room("third", 1)
    assert answers.total == 0
    assert answers.has_room("flood", 4)
    with answers.hold("a", 4), answers.hold("b", 2), answers.hold("c", 1), answers.hold("d", 1):
        assert not answers.has_room("e", 1)
