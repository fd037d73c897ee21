"""Traces on disk: what is written is read, and what is whole of a damaged file."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from mtad.errors import TraceError
from mtad.results.trace_format import LAYOUT, METADATA_KEY, Columns, TraceFacts, check_trace_path
from mtad.results.trace_reader import TraceReader
from mtad.results.trace_writer import TraceWriter

FACTS = TraceFacts(
    method="mmtad",
    drafter="beam_tree",
    verifier="joint",
    is_lossless=False,
    num_prompts=3,
    vocab_size=100,
    eos_token_ids=(2, 7),
    config={"threshold": 0.5, "stop": ["a"]},
)


def block(seed: int, num_steps: int, *, wide: bool = False) -> Columns:
    """Steps of random numbers and ragged lists, some of them empty."""
    generator = np.random.default_rng(seed)

    def column(name: str) -> tuple[np.ndarray[Any, Any], ...]:
        layout = LAYOUT[name]
        lengths: list[np.ndarray[Any, Any]] = []
        count = num_steps
        for _ in range(layout.num_levels):
            lengths.insert(0, generator.integers(0, 4, count))
            count = int(lengths[0].sum())
        kind = {"float": "float64" if wide else "float32"}.get(layout.kind, layout.kind)
        return (generator.integers(0, 2, count).astype(kind) + (0.25 if "float" in kind else False), *lengths)

    return {name: tuple(np.asarray(part) for part in column(name)) for name in LAYOUT}


def joined(blocks: list[Columns], name: str) -> list[Any]:
    return [np.concatenate(parts).tolist() for parts in zip(*[part[name] for part in blocks], strict=True)]


def write(path: Path, num_blocks: int = 5, **options: Any) -> list[Columns]:
    blocks = [block(seed, 3, **options) for seed in range(num_blocks)]
    with TraceWriter(path, FACTS, steps_per_flush=6, seconds_per_flush=math.inf) as writer:
        for part in blocks:
            writer.add(part)
    return blocks


def num_steps(path: Path) -> tuple[int, bool]:
    trace = TraceReader(path)
    count = sum(batch.num_steps for batch in trace.batches())
    return count, trace.is_cut_off


@pytest.mark.parametrize("wide", [False, True])
def test_what_is_written_is_read(tmp_path: Path, wide: bool) -> None:
    blocks = write(tmp_path / "trace", wide=wide)
    trace = TraceReader(tmp_path / "trace")
    assert trace.facts == replace(FACTS, config=trace.facts.config)
    assert trace.facts.config == FACTS.config
    batches = list(trace.batches())
    assert [batch.num_steps for batch in batches] == [6, 6, 3]
    assert not trace.is_cut_off
    assert trace.num_bytes_read == trace.num_bytes == (tmp_path / "trace").stat().st_size
    for name in LAYOUT:
        assert joined([batch.columns() for batch in batches], name) == joined(blocks, name)
    values = batches[0].column("target_log_probs")[0]
    assert values.dtype == (np.float64 if wide else np.float32)


def test_some_steps_of_a_batch_are_taken_whole(tmp_path: Path) -> None:
    blocks = write(tmp_path / "trace")
    batch = next(TraceReader(tmp_path / "trace").batches())
    taken = batch.take(np.array([3, 4, 5])).columns()
    for name in LAYOUT:
        assert joined([taken], name) == joined([blocks[1]], name)


def test_a_trace_that_is_still_being_written_can_be_read(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", FACTS, steps_per_flush=4, seconds_per_flush=math.inf)
    for seed in range(5):
        writer.add(block(seed, 3))
    assert num_steps(tmp_path / "trace") == (12, True)
    writer.close()
    assert num_steps(tmp_path / "trace") == (15, False)


def test_steps_are_not_held_back_for_long(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", FACTS, seconds_per_flush=0)
    for seed in range(3):
        writer.add(block(seed, 1))
        assert num_steps(tmp_path / "trace") == (seed + 1, True)
    writer.close()


def test_what_is_whole_of_a_trace_cut_off_anywhere_is_used(tmp_path: Path) -> None:
    write(tmp_path / "trace")
    content = (tmp_path / "trace").read_bytes()
    cut = tmp_path / "cut"
    seen: list[int] = []
    refused: list[int] = []
    for length in [*range(len(content) - 24, len(content)), *range(0, len(content), 97)]:
        cut.write_bytes(content[:length])
        try:
            count, is_cut_off = num_steps(cut)
        except TraceError:
            refused.append(length)
            continue
        assert is_cut_off
        seen.append(count)
    assert sorted(set(seen)) == [0, 6, 12, 15]
    assert seen[24:] == sorted(seen[24:])
    assert max(refused) < len(content) // 2


def test_a_damaged_batch_ends_what_is_used(tmp_path: Path) -> None:
    write(tmp_path / "trace")
    content = bytearray((tmp_path / "trace").read_bytes())
    content[-2000:-1000] = bytes(1000)
    (tmp_path / "trace").write_bytes(content)
    count, is_cut_off = num_steps(tmp_path / "trace")
    assert count in (6, 12)
    assert is_cut_off


def arrow_stream(path: Path, metadata: dict[bytes, bytes], names: tuple[str, ...] = ("row",)) -> None:
    schema = pa.schema([(name, pa.int32()) for name in names], metadata=metadata)
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays([pa.array([1], pa.int32()) for _ in names], schema=schema))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"\n", "is no trace"),
        (b'{"index": 0}\n' * 9, "is no trace"),
        (b"ARROW1\0\0" * 40, "no trace"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "trace").write_bytes(content)
    with pytest.raises(TraceError, match=part):
        TraceReader(tmp_path / "trace")


def test_other_streams_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    newer = replace(FACTS, version=2, mtad="9.1").to_json().encode()
    cases = [
        ({}, "is an Arrow stream, but no trace"),
        ({METADATA_KEY: newer}, r"format version 2 \(mtad 9.1\), and this mtad reads version 1; record it again"),
        ({METADATA_KEY: b"{"}, "no JSON"),
        ({METADATA_KEY: b"[]"}, "no version"),
        ({METADATA_KEY: b'{"version": 1}'}, "not those of a trace"),
        ({METADATA_KEY: FACTS.to_json().encode()}, "columns are not those of a trace"),
    ]
    for metadata, part in cases:
        arrow_stream(path, metadata)
        with pytest.raises(TraceError, match=part):
            TraceReader(path)
    arrow_stream(path, {METADATA_KEY: FACTS.to_json().encode()}, tuple(LAYOUT))
    with pytest.raises(TraceError, match="its column seed holds int32"):
        TraceReader(path)


def test_places_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be read \(No such file"):
        TraceReader(tmp_path / "trace")
    with pytest.raises(TraceError, match=r"cannot be written \(Is a directory"):
        TraceWriter(tmp_path, FACTS)
    with pytest.raises(TraceError, match="is a folder; name a file"):
        check_trace_path(tmp_path)
    with pytest.raises(TraceError, match="folder that does not exist"):
        check_trace_path(tmp_path / "missing" / "trace")
    check_trace_path(tmp_path / "trace")


def test_a_missing_pyarrow_is_named_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for use in (lambda: TraceReader(tmp_path / "a"), lambda: TraceWriter(tmp_path / "a", FACTS)):
        with pytest.raises(TraceError, match=r"pip install 'mtad\[traces\]'"):
            use()
    assert not (tmp_path / "a").exists()
