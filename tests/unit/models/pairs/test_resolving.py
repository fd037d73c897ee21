import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from tests.tiny_pairs import FakePip, TinyPair, build_in_process
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtad.errors import ModelLoadError, PairDownloadError
from mtad.models.pairs import gguf_conversion, pair_paths, resolve_model, resolving
from mtad.models.pairs.folders import PairFolders
from mtad.models.pairs.resolving import ensure_pair


@pytest.fixture
def folders(tiny_pair: TinyPair, tmp_path: Path) -> PairFolders:
    return PairFolders.locate(tiny_pair.source, tmp_path)


def test_both_models_load_on_their_own(tiny_pair: TinyPair, pip: FakePip, tmp_path: Path) -> None:
    paths = ensure_pair(tiny_pair.source, tmp_path, progress=False)
    target = AutoModelForCausalLM.from_pretrained(paths.target, dtype="auto")
    draft = AutoModelForCausalLM.from_pretrained(paths.draft, dtype="auto")
    assert target.dtype == draft.dtype == torch.bfloat16
    assert (
        AutoTokenizer.from_pretrained(paths.target).get_vocab()
        == AutoTokenizer.from_pretrained(paths.draft).get_vocab()
    )


def test_a_cached_pair_is_not_fetched_again(tiny_pair: TinyPair, pip: FakePip, tmp_path: Path) -> None:
    first = ensure_pair(tiny_pair.source, tmp_path, progress=False)
    assert ensure_pair(tiny_pair.source, tmp_path, progress=False) == first
    assert len(pip.runs) == 1


def test_nothing_but_the_pair_and_its_lock_stays(tiny_pair: TinyPair, pip: FakePip, folders: PairFolders) -> None:
    ensure_pair(tiny_pair.source, folders.home.parents[1], progress=False)
    assert set(folders.home.iterdir()) == {folders.target, folders.draft, folders.lock}
    assert not folders.downloads.exists()


def test_progress_goes_to_standard_error(
    tiny_pair: TinyPair, pip: FakePip, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ensure_pair(tiny_pair.source, tmp_path, progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert [line.split()[:2] for line in captured.err.splitlines()] == [
        ["mtad:", "preparing"],
        ["mtad:", "unpacking"],
        ["mtad:", "the"],
    ]


def test_silence_is_silent(
    tiny_pair: TinyPair, pip: FakePip, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ensure_pair(tiny_pair.source, tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_truncated_target_is_built_again(tiny_pair: TinyPair, pip: FakePip, folders: PairFolders) -> None:
    root = folders.home.parents[1]
    ensure_pair(tiny_pair.source, root, progress=False)
    weights = folders.target / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    ensure_pair(tiny_pair.source, root, progress=False)
    assert weights.read_bytes() == whole
    assert len(pip.runs) == 2


def test_a_damaged_draft_is_built_again_without_a_download(
    tiny_pair: TinyPair, pip: FakePip, folders: PairFolders
) -> None:
    root = folders.home.parents[1]
    ensure_pair(tiny_pair.source, root, progress=False)
    (folders.draft / "config.json").write_text("")
    ensure_pair(tiny_pair.source, root, progress=False)
    assert (folders.draft / "config.json").stat().st_size > 0
    assert len(pip.runs) == 1


def test_an_interrupted_build_leaves_nothing_and_is_repeated(
    tiny_pair: TinyPair, pip: FakePip, folders: PairFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    root = folders.home.parents[1]
    with monkeypatch.context() as patch:
        patch.setattr(gguf_conversion, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensure_pair(tiny_pair.source, root, progress=False)
    assert set(folders.home.iterdir()) == {folders.lock}
    assert ensure_pair(tiny_pair.source, root, progress=False).target == folders.target


def test_what_a_killed_process_left_is_swept(tiny_pair: TinyPair, pip: FakePip, folders: PairFolders) -> None:
    (folders.scratch / folders.target.name).mkdir(parents=True)
    folders.target.mkdir()
    (folders.target / "model.safetensors").write_bytes(b"half")
    ensure_pair(tiny_pair.source, folders.home.parents[1], progress=False)
    assert not folders.scratch.exists()


def test_two_processes_build_one_pair(tiny_pair: TinyPair, folders: PairFolders) -> None:
    root = folders.home.parents[1]
    folders.downloads.mkdir()
    shutil.copy(tiny_pair.wheel_path, folders.downloads)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_in_process, args=(tiny_pair.source, root)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert set(folders.home.iterdir()) == {folders.target, folders.draft, folders.lock}
    AutoModelForCausalLM.from_pretrained(folders.target)


def test_a_cache_that_cannot_be_written_is_an_error(tiny_pair: TinyPair, pip: FakePip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PairDownloadError, match=r"expected a writable folder.*MTAD_CACHE"):
        ensure_pair(tiny_pair.source, tmp_path / "file" / "cache", progress=False)


def test_no_network_and_no_cache_is_an_error(tiny_pair: TinyPair, pip: FakePip, folders: PairFolders) -> None:
    pip.contents = [None]
    with pytest.raises(PairDownloadError, match="check the network"):
        ensure_pair(tiny_pair.source, folders.home.parents[1], progress=False)
    assert set(folders.home.iterdir()) == {folders.lock}


def test_an_unknown_pair_is_an_error() -> None:
    with pytest.raises(ModelLoadError, match="got the pair 'smollm3', expected one of: smollm2"):
        pair_paths("smollm3")


def test_names_folders_and_identifiers_are_resolved(
    tiny_pair: TinyPair, pip: FakePip, tmp_path: Path, folders: PairFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "KNOWN_PAIRS", MappingProxyType({"tiny": tiny_pair.source}))
    monkeypatch.setenv("MTAD_CACHE", str(tmp_path))
    assert resolve_model("tiny", "target", progress=False) == folders.target
    assert resolve_model("tiny", "draft", progress=False) == folders.draft
    assert resolve_model(str(tmp_path), "target") == tmp_path
    assert resolve_model("organisation/model", "draft") == "organisation/model"


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "~/missing", "some/longer/path"])
def test_a_path_to_nothing_is_an_error(path: str) -> None:
    with pytest.raises(ModelLoadError, match="there is no such folder"):
        resolve_model(path, "target")


def test_importing_the_package_stays_light() -> None:
    code = "import sys, mtad.models.pairs; sys.exit(not {'torch', 'transformers', 'numpy'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
