"""Writes traces as the run goes."""

from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import numpy as np

from mtad.errors import TraceError
from mtad.results.trace_format import LAYOUT, METADATA_KEY, Column, Columns, TraceFacts, numpy_kind, require_arrow

DEFAULT_STEPS_PER_FLUSH = 256
DEFAULT_SECONDS_PER_FLUSH = 5.0


class TraceWriter:
    """Collects steps and appends them to a file every few seconds, so that a killed run leaves what it did.

    Args:
        path: The file, which is overwritten.
        facts: What holds for every step.
        steps_per_flush: Steps after which they are written.
        seconds_per_flush: Seconds after which they are written, once the next step comes.

    Raises:
        TraceError: The file cannot be written, or pyarrow is missing.
    """

    def __init__(
        self,
        path: Path,
        facts: TraceFacts,
        *,
        steps_per_flush: int = DEFAULT_STEPS_PER_FLUSH,
        seconds_per_flush: float = DEFAULT_SECONDS_PER_FLUSH,
    ) -> None:
        self._arrow = require_arrow()
        self._facts = facts
        self._steps_per_flush = steps_per_flush
        self._seconds_per_flush = seconds_per_flush
        self._flushed = monotonic()
        self._blocks: list[Columns] = []
        self._num_waiting = 0
        self._stream: Any = None
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise TraceError(f"trace {path} cannot be written ({error.strerror}); name another file") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, block: Columns) -> None:
        """Take some steps, one entry per column of `LAYOUT`; written when it is time."""
        self._blocks.append(block)
        self._num_waiting += len(block["row"][0])
        is_due = monotonic() - self._flushed >= self._seconds_per_flush
        if is_due or self._num_waiting >= self._steps_per_flush:
            self.flush()

    def flush(self) -> None:
        """Write what was taken so far."""
        if not self._blocks:
            return
        joined = {name: _concatenate([block[name] for block in self._blocks]) for name in LAYOUT}
        arrays = [self._array(name, joined[name]) for name in LAYOUT]
        if self._stream is None:
            self._stream = self._open([array.type for array in arrays])
        self._stream.write_batch(self._arrow.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._file.flush()
        self._blocks = []
        self._num_waiting = 0
        self._flushed = monotonic()

    def close(self) -> None:
        """Write the rest and the end marker."""
        with self._file:
            self.flush()
            if self._stream is not None:
                self._stream.close()

    def _open(self, types: list[Any]) -> Any:
        columns = [self._arrow.field(name, kind, nullable=False) for name, kind in zip(LAYOUT, types, strict=True)]
        self._schema = self._arrow.schema(columns, metadata={METADATA_KEY: self._facts.to_json().encode()})
        options = self._arrow.ipc.IpcWriteOptions(compression="zstd")
        return self._arrow.ipc.new_stream(self._file, self._schema, options=options)

    def _array(self, name: str, column: Column) -> Any:
        values = self._arrow.array(column[0].astype(numpy_kind(column[0], LAYOUT[name]), copy=False))
        for lengths in column[1:]:
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            values = self._arrow.ListArray.from_arrays(offsets, values)
        return values


def _concatenate(columns: list[Column]) -> Column:
    return tuple(np.concatenate(parts) for parts in zip(*columns, strict=True))
