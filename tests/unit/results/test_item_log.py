"""What is in the log stays, what a kill has torn goes."""

import json
from pathlib import Path

import pytest

from mtad.errors import DataError
from mtad.results.item_log import ItemLog, read_entries, write_parquet


def entry(item: str, start: int = 0) -> dict[str, object]:
    return {"task": "t", "contender": "c", "seed": 0, "start": start, "item": item, "outputs": [item], "details": {}}


def two(key: object) -> int:
    return 2


def test_batches_are_kept_across_openings(tmp_path: Path) -> None:
    path = tmp_path / "run" / "items.jsonl"
    log = ItemLog(path, two)
    log.append([entry("a"), entry("b")])
    assert log.has(("t", "c", 0, 0))
    again = ItemLog(path, two)
    assert again.has(("t", "c", 0, 0))
    assert again.entries == log.entries == [entry("a"), entry("b")]


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_batch_is_dropped_and_run_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "items.jsonl"
    ItemLog(path, two).append([entry("a"), entry("b")])
    ItemLog(path, two).append([entry("c", 2), entry("d", 2)])
    path.write_bytes(path.read_bytes()[:-cut])
    log = ItemLog(path, two)
    assert not log.has(("t", "c", 0, 2))
    log.append([entry("c", 2), entry("d", 2)])
    assert [found["item"] for found in read_entries(path)] == ["a", "b", "c", "d"]


def test_broken_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(entry("a")) + "\nnonsense\n" + json.dumps(entry("b")) + "\n")
    with pytest.raises(DataError, match="line 2: not JSON"):
        read_entries(path)
    path.write_text(json.dumps(entry("a")) + "\n{}\n")
    with pytest.raises(DataError, match="line 2: no answer"):
        read_entries(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_entries(tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        ItemLog(Path("/dev/null/x/items.jsonl"), two)


def test_the_parquet_file_has_every_answer(tmp_path: Path) -> None:
    from pyarrow import parquet

    write_parquet(tmp_path / "items.parquet", [entry("a"), entry("b")])
    rows = parquet.read_table(tmp_path / "items.parquet").to_pylist()
    assert [row["item"] for row in rows] == ["a", "b"]
    assert json.loads(rows[0]["outputs"]) == ["a"]
