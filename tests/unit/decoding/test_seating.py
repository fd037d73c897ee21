"""Rows of one kind are neighbours, whoever comes and goes."""

import random
from collections.abc import Hashable

from mtad.decoding.seating import Place, Seating


def test_rows_keep_what_they_hold_and_stay_neighbours() -> None:
    chance = random.Random(3)
    held = list(range(9))

    def swap(first: int, second: int) -> None:
        held[first], held[second] = held[second], held[first]

    seating = Seating(9, swap)
    blocks: list[Hashable] = ["a", "b", "c", Place.FREE, Place.PREFILLING]
    for block in blocks[:3]:
        seating.open(block)
    home: dict[int, object] = dict.fromkeys(held, Place.FREE)
    for _ in range(400):
        item, block = chance.randrange(9), chance.choice(blocks)
        row = seating.transfer(held.index(item), block)
        home[item] = block
        assert held[row] == item
        rows = [seating.rows_of(each) for each in blocks]
        assert [row for each in rows for row in each] == list(range(9))
        for each in blocks:
            assert {held[row] for row in seating.rows_of(each)} == {key for key, value in home.items() if value == each}


def test_an_empty_block_can_be_closed_and_opened_again() -> None:
    seating = Seating(2, lambda first, second: None)
    seating.open("a")
    row = seating.transfer(1, "a")
    seating.transfer(row, Place.FREE)
    seating.close("a")
    assert seating.rows_of(Place.FREE) == range(2)
    seating.open("a")
    seating.open("a")
    assert seating.rows_of("a") == range(0)
