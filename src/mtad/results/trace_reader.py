"""Reads traces, also those whose end is missing."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mtad.errors import TraceError
from mtad.results.trace_format import (
    END_MARKER,
    LAYOUT,
    METADATA_KEY,
    Array,
    Column,
    Columns,
    TraceFacts,
    require_arrow,
)


class TraceReader:
    """A trace on disk; what is whole of one cut off at the end is read.

    Args:
        path: The file.

    Attributes:
        facts: What holds for every step.
        num_bytes: Size of the file.
        num_bytes_read: How far `batches` has come.
        is_cut_off: Whether the end is missing; known once `batches` has ended.

    Raises:
        TraceError: The file cannot be read or is no trace of this version, or pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrow = require_arrow()
        self.num_bytes_read = 0
        self.is_cut_off = False
        try:
            with path.open("rb") as file:
                self.num_bytes = os.fstat(file.fileno()).st_size
                schema = self._open(file).schema
        except OSError as error:
            raise TraceError(
                f"trace {path} cannot be read ({error.strerror}); name a file that --trace wrote"
            ) from error
        self.facts = self._read_facts(schema)

    def batches(self) -> Iterator["StepBatch"]:
        """The steps in the order in which they were written, some hundreds at a time."""
        with self._path.open("rb") as file:
            stream = self._open(file)
            while (batch := self._next_batch(stream)) is not None:
                self.num_bytes_read = file.tell()
                yield StepBatch(self._arrow, batch)
            self.num_bytes_read = self.num_bytes
            self.is_cut_off = self.is_cut_off or not self._has_end(file)

    def _open(self, file: BinaryIO) -> Any:
        if self.num_bytes == 0:
            raise TraceError(f"trace {self._path} is empty: its run ended before the first steps were written")
        try:
            return self._arrow.ipc.open_stream(file)
        except (self._arrow.ArrowException, OSError) as error:
            raise TraceError(
                f"{self._path} is no trace, or was cut off before its first step; name a file that --trace wrote"
            ) from error

    def _next_batch(self, stream: Any) -> Any:
        """The next whole batch, None behind the last one."""
        try:
            batch = stream.read_next_batch()
            batch.validate(full=True)
        except StopIteration:
            return None
        except (self._arrow.ArrowException, OSError):
            self.is_cut_off = True
            return None
        return batch

    def _read_facts(self, schema: Any) -> TraceFacts:
        text = (schema.metadata or {}).get(METADATA_KEY)
        if text is None:
            raise TraceError(f"{self._path} is an Arrow stream, but no trace; name a file that --trace wrote")
        try:
            facts = TraceFacts.from_json(text)
            self._check_columns(schema)
        except TraceError as error:
            raise TraceError(f"trace {self._path} cannot be used: {error}; record it again with --trace") from error
        return facts

    def _check_columns(self, schema: Any) -> None:
        if schema.names != list(LAYOUT):
            raise TraceError("its columns are not those of a trace")
        for name, layout in LAYOUT.items():
            kind, num_levels = schema.field(name).type, 0
            while self._arrow.types.is_list(kind):
                kind, num_levels = kind.value_type, num_levels + 1
            kinds = ("float", "double") if layout.kind in ("float", "float32") else (layout.kind,)
            if str(kind) not in kinds or num_levels != layout.num_levels:
                raise TraceError(f"its column {name} holds {schema.field(name).type}")

    @staticmethod
    def _has_end(file: BinaryIO) -> bool:
        file.seek(-len(END_MARKER), os.SEEK_END)
        return file.read() == END_MARKER


class StepBatch:
    """Some steps of a trace.

    Args:
        arrow: The `pyarrow` module.
        batch: The record batch.
    """

    def __init__(self, arrow: Any, batch: Any) -> None:
        self._arrow = arrow
        self._batch = batch

    @property
    def num_steps(self) -> int:
        """Steps in the batch."""
        return int(self._batch.num_rows)

    def take(self, steps: Array) -> "StepBatch":
        """The named steps only, `[kept]` integers."""
        return StepBatch(self._arrow, self._batch.take(self._arrow.array(steps)))

    def columns(self) -> Columns:
        """Every column as arrays."""
        return {name: self.column(name) for name in LAYOUT}

    def column(self, name: str) -> Column:
        """Flat values of one column, then the lengths of its lists, the innermost first."""
        array, lengths = self._batch.column(name), []
        for _ in range(LAYOUT[name].num_levels):
            offsets = array.offsets.to_numpy()
            lengths.append(np.diff(offsets))
            array = array.flatten()
        return (array.to_numpy(zero_copy_only=False), *reversed(lengths))
