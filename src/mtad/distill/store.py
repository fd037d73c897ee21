"""Sampled texts on disk: token ids in two or four bytes each, and where every text begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtad.distill.work import WorkFolder, disk_errors, sync

STAGE = "sample"
_TOKENS, _INDEX = "tokens.bin", "index.bin"


@dataclass(frozen=True, slots=True)
class Text:
    """One prompt with its sampled answer."""

    token_ids: list[int]
    num_prompt_tokens: int


class TextStore:
    """An append-only file of token ids beside an index of `(end, prompt tokens)` pairs.

    Every append is brought onto the disk before `sample.json` says that it is there; what a killed run left behind
    that point is cut off.

    Args:
        work: Where the files lie.
        vocab_size: Two bytes a token suffice up to 65,536.
    """

    def __init__(self, work: WorkFolder, vocab_size: int) -> None:
        self.work, self.vocab_size = work, vocab_size
        self.kind = _token_type(vocab_size)
        self._tokens, self._index = work.path / _TOKENS, work.path / _INDEX
        self.state: dict[str, Any] = {"batches": 0, "texts": 0, "tokens": 0, "seconds": 0.0, "is_finished": False}
        self.state |= work.read(STAGE)
        with disk_errors(work.path):
            _cut(self._tokens, self.state["tokens"] * self.kind.itemsize)
            _cut(self._index, self.state["texts"] * 16)

    def append(self, texts: list[Text], seconds: float) -> None:
        """Add one batch; all or nothing of it is there after a kill or on a full disk.

        Raises:
            DistillError: It cannot be written.
        """
        end = self.state["tokens"]
        places = []
        for text in texts:
            end += len(text.token_ids)
            places.append((end, text.num_prompt_tokens))
        count = end - self.state["tokens"]
        flat = np.fromiter(chain.from_iterable(text.token_ids for text in texts), dtype=self.kind, count=count)
        with disk_errors(self.work.path):
            for path, values in ((self._tokens, flat), (self._index, np.array(places, dtype=np.int64))):
                with path.open("ab") as file:
                    file.write(values.tobytes())
                    sync(file)
        self._note(
            batches=self.state["batches"] + 1,
            texts=self.state["texts"] + len(texts),
            tokens=end,
            seconds=self.state["seconds"] + seconds,
        )

    def finish(self) -> None:
        """Say that no more will come."""
        self._note(is_finished=True)

    def _note(self, **changes: Any) -> None:
        changed = self.state | changes
        self.work.write(STAGE, changed)
        self.state = changed

    def open(self) -> "StoredTexts":
        """The texts, memory-mapped."""
        return open_texts(self.work, self.vocab_size)


class StoredTexts:
    """Read access to stored texts.

    Args:
        tokens: All token ids, one behind another.
        index: `[texts, 2]`: where each ends, and the length of its prompt.

    Attributes:
        lengths: Tokens of every text, int64.
    """

    def __init__(self, tokens: Any, index: Any) -> None:
        self._tokens = tokens
        self.ends = index[:, 0]
        self.starts = np.concatenate([[0], index[:-1, 0]]).astype(np.int64)
        self.prompts = index[:, 1]
        self.lengths = self.ends - self.starts

    def __len__(self) -> int:
        return len(self.ends)

    def prompt(self, number: int) -> list[int]:
        """Token ids of one text's prompt."""
        start = self.starts[number]
        found: list[int] = self._tokens[start : start + self.prompts[number]].tolist()
        return found

    def spans(self, numbers: list[int]) -> Tensor:
        """First place behind which an answer's token stands, and how many there are, `[texts, 2]` int64."""
        prompts = self.prompts[numbers]
        return torch.from_numpy(np.stack([prompts - 1, self.lengths[numbers] - prompts], axis=1).astype(np.int64))

    def frequencies(self, vocab_size: int) -> Any:
        """How often every token occurs, `[vocab_size]` int64."""
        return np.bincount(self._tokens, minlength=vocab_size).astype(np.int64)

    def pad(self, numbers: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Some texts side by side.

        Returns:
            Right-padded tokens, `[texts, longest]` int64, and the flat places in them behind which an answer's token
            stands, `[places]` int64.
        """
        longest = int(self.lengths[numbers].max())
        tokens = np.zeros((len(numbers), longest), dtype=np.int64)
        places = []
        for row, number in enumerate(numbers):
            length = int(self.lengths[number])
            tokens[row, :length] = self._tokens[self.starts[number] : self.ends[number]]
            places.append(np.arange(self.prompts[number] - 1, length - 1) + row * longest)
        return _bring(tokens, device), _bring(np.concatenate(places), device)

    def group(self, numbers: Sequence[int], batch_tokens: int) -> list[list[int]]:
        """Texts of like length side by side, as many in a group as `batch_tokens` places hold, at least one."""
        batches: list[list[int]] = []
        batch: list[int] = []
        lengths = dict(zip(numbers, self.lengths[numbers].tolist(), strict=True)) if numbers else {}
        for number in sorted(numbers, key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[number] > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(number)
        return [*batches, batch] if batch else batches

    def split(self) -> tuple[list[int], list[int]]:
        """Numbers of the texts to train on, and of the last twentieth (at most 128), which is held out."""
        held_out = max(1, min(128, len(self) // 20))
        return list(range(len(self) - held_out)), list(range(len(self) - held_out, len(self)))


def open_texts(work: WorkFolder, vocab_size: int) -> StoredTexts:
    """What a finished store holds, memory-mapped.

    Args:
        work: Where the files lie.
        vocab_size: As for the store.
    """
    index = np.fromfile(work.path / _INDEX, dtype=np.int64).reshape(-1, 2)
    return StoredTexts(np.memmap(work.path / _TOKENS, dtype=_token_type(vocab_size), mode="r"), index)


def _bring(values: Any, device: torch.device) -> Tensor:
    """An array on a device; to CUDA it goes from pinned memory, so that nobody waits for it."""
    found = torch.from_numpy(values)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def _token_type(vocab_size: int) -> Any:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _cut(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
            sync(file)
    elif not path.exists():
        path.touch()
