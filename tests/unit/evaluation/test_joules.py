"""Joules a token are those of windows around the decoding, part by part, in turns."""

import pytest
from tests.unit.energy.fakes import FakeCounter, FakeTime

from mtad.api.contenders import parse_contenders
from mtad.config import GenerationOptions
from mtad.energy import EnergyMeter
from mtad.errors import EnergyError
from mtad.evaluation.items import Item, Task, no_score
from mtad.evaluation.joules import Decode, measure_joules
from mtad.evaluation.plan import Entrant, TaskItems

SECONDS_A_TOKEN = {"autoregressive": 0.5, "mmtad": 0.2, "speculative": 0.3}


class Bench:
    """Entrants that take their seconds of a fake time, at 10 W, 4 of them at rest."""

    def __init__(self) -> None:
        self.time = FakeTime()
        self.counter = FakeCounter(self.time, {"gpu": 10.0})
        self.meter = EnergyMeter([self.counter], clock=self.time)
        self.order: list[tuple[str, int, int]] = []
        self.opened: list[str] = []

    def open(self, entrant: Entrant) -> Decode:
        self.opened.append(entrant.label)
        self.time.sleep(60.0)  # models are loaded outside the windows

        def decode(group: TaskItems, part: slice) -> int:
            self.order.append((entrant.label, part.start, part.stop))
            num_tokens = 4 * len(group.items[part])
            self.time.sleep(SECONDS_A_TOKEN[entrant.contender.label] * num_tokens)
            return num_tokens

        return decode


def entrant(word: str, draft: str | None = None) -> Entrant:
    (contender,) = parse_contenders([word], GenerationOptions())
    return Entrant(label=word if draft is None else f"{word} ({draft})", contender=contender, draft=draft)


def items(count: int) -> TaskItems:
    task = Task(name="t", metric="", load=lambda *_: [], score=no_score)
    found = tuple(Item(item_id=str(place), turns=("x",), max_new_tokens=4) for place in range(count))
    return TaskItems(task=task, items=found, shots=0)


def test_every_entrant_has_the_same_parts_and_joules_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, notes = Bench(), list[str]()
    monkeypatch.setattr(bench.meter, "measure_idle", lambda: bench.time.sleep(2.0))
    found = measure_joules(
        [entrant("autoregressive"), entrant("mmtad")], [items(7)], bench.open, bench.meter, notes.append
    )
    assert found["t", "autoregressive"]["per_token"] == pytest.approx({"value": 5.0, "low": 5.0, "high": 5.0})
    assert found["t", "mmtad"]["per_token"]["value"] == pytest.approx(2.0)
    assert found["t", "mmtad"]["ratio"]["value"] == pytest.approx(0.4)
    assert found["t", "autoregressive"]["ratio"]["value"] == 1
    parts = {label: {(start, end) for name, start, end in bench.order if name == label} for label, *_ in bench.order}
    assert parts["mmtad"] == parts["autoregressive"]
    assert sorted(place for start, end in parts["mmtad"] for place in range(start, end)) == list(range(7))
    starts = [(name, start) for name, start, _ in bench.order]
    assert list(dict.fromkeys(starts))[:4] == [("autoregressive", 0), ("mmtad", 0), ("mmtad", 1), ("autoregressive", 1)]
    assert notes == ["measured joules on t"]


def test_other_drafts_are_opened_one_by_one_and_compared_with_the_same_sampling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    monkeypatch.setattr(bench.meter, "measure_idle", lambda: None)
    entrants = [entrant("autoregressive", "a"), entrant("mmtad", "a"), entrant("speculative", "b")]
    entrants[0] = Entrant(label="autoregressive", contender=entrants[0].contender, draft="a")
    found = measure_joules(entrants, [items(5)], bench.open, bench.meter, lambda _: None)
    assert bench.opened == ["autoregressive", "mmtad (a)", "speculative (b)"]
    assert [name for name, *_ in bench.order].index("speculative (b)") > len(bench.order) / 2
    assert found["t", "speculative (b)"]["ratio"]["value"] == pytest.approx(0.6)


def test_a_counter_that_fails_ends_it_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(bench.meter, "measure_idle", lambda: None)
    bench.counter.error = "the counter is gone"
    with pytest.raises(EnergyError, match=r"no joules: the counter is gone; choose another --meter"):
        measure_joules([entrant("autoregressive")], [items(4)], bench.open, bench.meter, lambda _: None)
