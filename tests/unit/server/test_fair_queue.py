"""Clients take turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtad.server.fair_queue import FairQueue


def test_who_floods_waits_for_the_others() -> None:
    waiting: FairQueue[str] = FairQueue()
    for number in range(4):
        waiting.add("flood", f"f{number}")
    waiting.add("calm", "c0")
    waiting.add("other", "o0")
    waiting.add("calm", "c1")
    assert [waiting.take() for _ in range(7)] == ["f0", "c0", "o0", "f1", "c1", "f2", "f3"]
    with pytest.raises(KeyError):
        waiting.take()


def test_what_is_removed_is_gone() -> None:
    waiting: FairQueue[str] = FairQueue()
    waiting.add("a", "one")
    waiting.add("a", "two")
    assert waiting.remove("a", "one")
    assert not waiting.remove("a", "one")
    assert not waiting.remove("b", "two")
    assert waiting.clear() == ["two"]
    assert not waiting


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_nobody_is_served_twice_while_another_waits(clients: list[str]) -> None:
    waiting: FairQueue[tuple[str, int]] = FairQueue()
    for number, client in enumerate(clients):
        waiting.add(client, (client, number))
    taken = [waiting.take() for _ in clients]
    for client in "abc":
        assert [number for name, number in taken if name == client] == sorted(
            number for name, number in taken if name == client
        )
    for place, (client, _) in enumerate(taken):
        later = [name for name, _ in taken[place + 1 :]]
        if client in later:
            between = later[: later.index(client)]
            assert set(between) == set(later) - {client}
