"""Stored texts survive kills and full disks whole."""

import errno
import os
from pathlib import Path

import pytest
import torch

from mtad.distill.store import Text, TextStore
from mtad.distill.work import WorkFolder
from mtad.errors import DistillError

TEXTS = [Text([1, 2, 3, 4], 2), Text([5, 6, 7], 1)]
MORE = [Text([8, 9], 1)]


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    folder = WorkFolder(tmp_path)
    folder.open({})
    return folder


@pytest.mark.parametrize(("vocab_size", "width"), [(65_536, 2), (65_537, 4)])
def test_tokens_take_as_few_bytes_as_the_vocabulary_allows(work: WorkFolder, vocab_size: int, width: int) -> None:
    store = TextStore(work, vocab_size)
    store.append([Text([vocab_size - 1, 0], 1)], 1.0)
    assert (work.path / "tokens.bin").stat().st_size == 2 * width
    assert store.open().prompt(0) == [vocab_size - 1]


def test_answers_are_the_places_to_train_on(work: WorkFolder) -> None:
    store = TextStore(work, 61)
    store.append(TEXTS, 1.0)
    texts = store.open()
    tokens, places = texts.pad([0, 1], torch.device("cpu"))
    assert tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 0]]
    assert places.tolist() == [1, 2, 4, 5]


def test_texts_of_like_length_share_a_group(work: WorkFolder) -> None:
    store = TextStore(work, 61)
    store.append([Text([1] * count, 1) for count in (9, 2, 5, 3, 30, 2)], 1.0)
    texts = store.open()
    assert texts.group([0, 1, 2, 3, 4, 5], 10) == [[1, 5, 3], [2], [0], [4]]
    assert texts.group([], 10) == []


def test_what_a_kill_left_half_written_is_cut_off(work: WorkFolder) -> None:
    TextStore(work, 61).append(TEXTS, 1.0)
    for name in ("tokens.bin", "index.bin"):
        with (work.path / name).open("ab") as file:
            file.write(b"half a batch")
    store = TextStore(work, 61)
    store.append(MORE, 1.0)
    texts = store.open()
    assert texts.lengths.tolist() == [4, 3, 2]
    assert texts.prompt(2) == [8]
    assert store.state["batches"] == 2


def test_a_full_disk_is_one_sentence_and_loses_nothing(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TextStore(work, 61)
    store.append(TEXTS, 1.0)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DistillError, match=r"No space left on device.*free some space"):
            store.append(MORE, 1.0)
    assert store.state["batches"] == 1
    again = TextStore(work, 61)
    again.append(MORE, 1.0)
    assert again.open().lengths.tolist() == [4, 3, 2]
