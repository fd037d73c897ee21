"""The server's log: a line each, written by a thread of its own."""

import json
import logging
import os
import queue
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from mtad.config import ServerOptions
from mtad.errors import ConfigError
from mtad.server.notes import RequestNote

_MAX_WAITING_LINES = 10_000
_SOURCE = "mtad.server.requests"


class Sink(Protocol):
    """Where lines go."""

    def write(self, line: str) -> None:
        """Write a line; raises OSError where that cannot be done."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class StderrSink:
    """Lines on standard error."""

    def write(self, line: str) -> None:
        """See `Sink.write`."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leaves standard error open."""


class FileSink:
    """Lines at the end of a file, which may be moved away meanwhile: a new one is begun then.

    Raises:
        ConfigError: The file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_torn = False
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"log file {path} cannot be written ({error.strerror}); name another --log-file"
            ) from error

    def write(self, line: str) -> None:
        """See `Sink.write`; after a line that was cut short the next one begins anew."""
        self._follow()
        rest = (("\n" if self._is_torn else "") + line + "\n").encode()
        while rest:
            count = os.write(self._file, rest)
            rest = rest[count:]
            self._is_torn = bool(rest)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> None:
        # Without O_NONBLOCK a pipe that nobody reads would hold the server up.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o640)
        found = os.fstat(self._file)
        self._place = found.st_dev, found.st_ino

    def _follow(self) -> None:
        try:
            found = Path(self._path).stat()
            is_here = (found.st_dev, found.st_ino) == self._place
        except FileNotFoundError:
            is_here = False
        if not is_here:
            os.close(self._file)
            self._open()


class ServerLog(logging.Handler):
    """Takes log records and requests; neither a full disk nor a blocked pipe holds anybody up.

    Args:
        options: Format and file of the log; standard error without a file.

    Attributes:
        num_lost: Lines that could not be written.
    """

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(logging.INFO)
        self.num_lost = 0
        self._sink: Sink = StderrSink() if options.log_file is None else FileSink(options.log_file)
        self.setFormatter(_JsonLines() if options.log_format == "json" else _TextLines())
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_WAITING_LINES)
        self._is_failing = False
        self._thread = threading.Thread(target=self._write, name="mtad-log", daemon=True)
        self._thread.start()

    def request(self, note: RequestNote) -> None:
        """One line for a request that has ended."""
        record = logging.LogRecord(_SOURCE, logging.INFO, "", 0, "request", None, None)
        record.fields = note.fields()
        self.handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line; never waits."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.num_lost += 1

    def close(self) -> None:
        """Write what waits, for a few seconds at most, and end the thread."""
        if self._thread.is_alive():
            try:
                self._lines.put(None, timeout=2)
            except queue.Full:
                return
            self._thread.join(5)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._sink.write(line)
            except (OSError, ValueError) as error:
                self._note_loss(error)
            else:
                self._is_failing = False
        self._sink.close()

    def _note_loss(self, error: Exception) -> None:
        """Count a lost line, and say so on standard error for the first of a row."""
        self.num_lost += 1
        if self._is_failing:
            return
        self._is_failing = True
        try:
            print(
                f"mtad: the log cannot be written ({error}); requests go on without it, free some space",
                file=sys.stderr,
                flush=True,
            )
        except (OSError, ValueError):
            return


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(self, record), ensure_ascii=False, default=str)


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(self, record)
        head = f"{fields.pop('time')} {fields.pop('level')} {fields.pop('message')}"
        trace = fields.pop("exception", None)
        line = " ".join([head, *(f"{name}={_plain(value)}" for name, value in fields.items())])
        return line if trace is None else f"{line}\n{trace}"


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
    found |= getattr(record, "fields", {})
    return found | ({"exception": formatter.formatException(record.exc_info)} if record.exc_info else {})


def _plain(value: Any) -> str:
    """A value as one word, quoted where it would not be one."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)
