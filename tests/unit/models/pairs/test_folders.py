from pathlib import Path

import pytest

from mtad.errors import PairDownloadError
from mtad.models.pairs import folders
from mtad.models.pairs.folders import MARKER_NAME, PairFolders, cache_root, is_complete, mark_complete
from mtad.models.pairs.sources import KNOWN_PAIRS, PairSource


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 64}')
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    mark_complete(folder)
    return folder


def test_the_cache_moves_with_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTAD_CACHE", str(tmp_path / "elsewhere"))
    assert cache_root() == tmp_path / "elsewhere"


@pytest.mark.parametrize("value", [None, ""])
def test_the_cache_is_the_users_own_by_default(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTAD_CACHE", raising=False)
    if value is not None:
        monkeypatch.setenv("MTAD_CACHE", value)
    assert cache_root().name == "mtad"
    assert cache_root().is_absolute()


def test_a_marked_folder_is_complete(complete: Path) -> None:
    assert is_complete(complete)


def test_a_folder_without_marker_is_not_complete(complete: Path) -> None:
    (complete / MARKER_NAME).unlink()
    assert not is_complete(complete)
    assert not is_complete(complete / "missing")


@pytest.mark.parametrize("marker", ["", "{", "[]", "3", '{"recipe": 1}', '{"recipe": 1, "files": {"config.json": 3}}'])
def test_a_damaged_marker_is_not_complete(complete: Path, marker: str) -> None:
    (complete / MARKER_NAME).write_text(marker)
    assert not is_complete(complete)


def test_a_truncated_large_file_is_noticed(complete: Path) -> None:
    (complete / "model.safetensors").write_bytes(bytes(99_999))
    assert not is_complete(complete)


def test_a_small_file_changed_in_place_is_noticed(complete: Path) -> None:
    (complete / "config.json").write_text('{"hidden_size": 65}')
    assert not is_complete(complete)


def test_a_deleted_file_is_noticed(complete: Path) -> None:
    (complete / "config.json").unlink()
    assert not is_complete(complete)


def test_an_older_recipe_is_not_complete(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_RECIPE", 2)
    assert not is_complete(complete)


def test_folder_names_carry_what_they_are_made_from(tmp_path: Path) -> None:
    located = PairFolders.locate(KNOWN_PAIRS["smollm2"], tmp_path)
    assert located.target.name == "target-b179c952"
    assert located.draft.name.startswith("draft-")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_packed_draft_asks_for_a_new_installation(tmp_path: Path) -> None:
    source = PairSource(name="bare", target=KNOWN_PAIRS["smollm2"].target, draft_folder=tmp_path)
    with pytest.raises(PairDownloadError, match="reinstall mtad"):
        PairFolders.locate(source, tmp_path)
