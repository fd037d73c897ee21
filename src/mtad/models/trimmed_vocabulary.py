"""A draft that knows a few of its target's tokens: which ones, and where that is written down."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mtad.errors import VocabularyMismatchError
from mtad.models.checkpoints import loading_errors
from mtad.models.intersection import Vocabulary, VocabularyMap, intersect, read_vocabulary

VOCABULARY_FILE = "target_vocabulary.safetensors"
"""Lies in the folder of a draft with a trimmed vocabulary, in place of a tokenizer."""
_DIGEST = "target_sha256"


def trim_vocabulary(tokenizer: Any, kept: Sequence[int], width: int) -> VocabularyMap:
    """How a draft with some of the target's tokens reads all of them.

    Its token i is the target's `kept[i]`. Other tokens are fed as `intersect` feeds them: the longest kept token that
    ends their text, special ones as their role or as the end of text.

    Args:
        tokenizer: The target's.
        kept: Target ids, none twice.
        width: Logits of the target, padding included.

    Raises:
        VocabularyMismatchError: The tokenizer does not say what its tokens stand for.
    """
    target = read_vocabulary(tokenizer, width)
    own = {token: index for index, token in enumerate(kept)}
    trimmed = Vocabulary(
        texts={own[token]: text for token, text in target.texts.items() if token in own},
        specials={own[token]: text for token, text in target.specials.items() if token in own},
        roles={role: own[token] for role, token in target.roles.items() if token in own},
    )
    mapped = intersect(target, trimmed, width)
    draft_ids = torch.full((width,), -1)
    draft_ids[torch.tensor(list(kept))] = torch.arange(len(kept))
    fed_ids = torch.where(draft_ids >= 0, draft_ids, mapped.fed_ids)
    return VocabularyMap(draft_ids=draft_ids, fed_ids=fed_ids, num_tokens=target.num_tokens)


def kept_tokens(vocabulary: VocabularyMap) -> torch.Tensor:
    """The target's id of every token of the draft, `[draft_vocab]` int64."""
    shared = (vocabulary.draft_ids >= 0).nonzero().squeeze(1)
    return shared[vocabulary.draft_ids[shared].argsort()]


def save_vocabulary(vocabulary: VocabularyMap, tokenizer: Any, folder: Path) -> None:
    """Write the pairs of tokens into a draft's folder, with the digest of the target's vocabulary."""
    tensors = {"draft_ids": vocabulary.draft_ids.int().cpu(), "fed_ids": vocabulary.fed_ids.int().cpu()}
    save_file(tensors, folder / VOCABULARY_FILE, {_DIGEST: _digest(tokenizer), "tokens": str(vocabulary.num_tokens)})


def load_vocabulary(folder: Path, tokenizer: Any, widths: tuple[int, int]) -> VocabularyMap | None:
    """The pairs that a draft's folder names; None where it has the whole vocabulary.

    Args:
        folder: The draft's.
        tokenizer: The target's.
        widths: Logits of target and draft.

    Raises:
        ModelLoadError: The file is damaged.
        VocabularyMismatchError: It was made for another target.
    """
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return None
    with loading_errors("vocabulary", path), safe_open(path, framework="pt") as file:
        notes = file.metadata()
        draft_ids, fed_ids = file.get_tensor("draft_ids").long(), file.get_tensor("fed_ids").long()
        digest, num_tokens = notes[_DIGEST], int(notes["tokens"])
    largest = int(torch.maximum(draft_ids, fed_ids).max())
    if digest != _digest(tokenizer) or len(draft_ids) != widths[0] or largest >= widths[1]:
        raise VocabularyMismatchError(
            f"got the draft {folder}, whose trimmed vocabulary belongs to another target ({len(draft_ids):,} tokens), "
            f"expected one made from this target's {widths[0]:,} tokens; use a draft made for this target"
        )
    return VocabularyMap(draft_ids=draft_ids, fed_ids=fed_ids, num_tokens=num_tokens)


def _digest(tokenizer: Any) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
