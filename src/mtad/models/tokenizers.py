"""Tokenizers of target and draft, and whether they are one and the same."""

import filecmp
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mtad.errors import ModelLoadError, VocabularyMismatchError
from mtad.models.checkpoints import loading_errors
from mtad.models.quiet import quiet_libraries

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
SHARED_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_tokenizer(source: Path | str, role: str, revision: str | None = None) -> Any:
    """Load a tokenizer from a folder or the hub.

    Raises:
        ModelLoadError: There is none, or it cannot be read.
    """
    if isinstance(source, Path) and not has_tokenizer(source):
        raise ModelLoadError(
            f"got {role} {source} without tokenizer files, expected a tokenizer.json; "
            "copy the tokenizer files of its base model into the folder"
        )
    with quiet_libraries(), loading_errors(f"{role} tokenizer", source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def share_files(target: Path, draft: Path) -> bool:
    """Whether both folders hold byte-identical tokenizer files, which spares loading the second."""
    pairs = [(target / name, draft / name) for name in SHARED_FILES]
    return all(one.is_file() and two.is_file() and filecmp.cmp(one, two, shallow=False) for one, two in pairs)


def shared_vocab_size(tokenizer: Any, target_width: int, draft_width: int | None, *, is_compared: bool) -> int:
    """Number of leading logits to use: the smaller width, which must cover the tokenizer.

    Args:
        tokenizer: The target's.
        target_width: Logits of the target, padding included.
        draft_width: Logits of the draft, or None without one.
        is_compared: Whether the two tokenizers are known to be equal. Without that proof only equal widths pass.

    Raises:
        VocabularyMismatchError: A width is smaller than the tokenizer, or the draft cannot be the target's.
    """
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    widths = {"target": target_width} | ({"draft": draft_width} if draft_width is not None else {})
    for role, width in widths.items():
        if width < needed:
            raise VocabularyMismatchError(
                f"got a {role} with {width} tokens, expected at least the {needed} of the target's tokenizer; "
                f"use a {role} with the same vocabulary"
            )
    if draft_width is not None and not is_compared and draft_width != target_width:
        raise VocabularyMismatchError(
            f"got a draft with {draft_width} tokens and no tokenizer files, expected the target's {target_width}; "
            "copy its tokenizer files into the draft's folder, or use a draft made for this target"
        )
    return min(widths.values())
