"""Whether a draft reads the target's tokens, and how it does with a vocabulary of its own."""

from pathlib import Path
from typing import Any

from mtad.errors import VocabularyMismatchError
from mtad.models.intersection import VocabularyMap, intersect, read_vocabulary
from mtad.models.tokenizers import has_tokenizer, load_tokenizer, share_files
from mtad.models.trimmed_vocabulary import load_vocabulary

SMALLEST_SHARE = 0.05
"""Share of the target's tokens that a draft must have. Single bytes and letters alone stay far below it."""


def match_draft(
    tokenizer: Any, target: Path | str, draft: Path | str, widths: tuple[int, int], *, may_differ: bool
) -> VocabularyMap | None:
    """How a draft with another vocabulary reads the target's tokens; None where both have the same.

    A folder that says which of this target's tokens it has is believed, whether another vocabulary is allowed or not.

    Args:
        tokenizer: The target's.
        target: Where the target lies.
        draft: Where the draft lies; a local one without a tokenizer is taken to have the target's.
        widths: Logits of target and draft, padding included.
        may_differ: Whether another vocabulary is allowed.

    Raises:
        VocabularyMismatchError: The vocabularies differ and may not, share too little, or cannot be compared.
        ModelLoadError: The draft's tokenizer cannot be read.
    """
    trimmed = load_vocabulary(draft, tokenizer, widths) if isinstance(draft, Path) else None
    if trimmed is not None:
        return trimmed
    if may_differ and isinstance(draft, Path) and not has_tokenizer(draft):
        raise VocabularyMismatchError(
            f"got the draft {draft} without tokenizer files, expected its own to compare the vocabularies; "
            "copy the tokenizer files of its base model into the folder, or leave out --match-vocabularies"
        )
    other = _differing_tokenizer(tokenizer, target, draft)
    if other is None:
        return None
    if not may_differ:
        raise vocabulary_mismatch(tokenizer, other, "use --match-vocabularies intersection")
    return map_vocabulary(tokenizer, other, widths)


def map_vocabulary(target: Any, draft: Any, widths: tuple[int, int]) -> VocabularyMap:
    """Pair the tokens of two tokenizers.

    Args:
        target: The target's tokenizer.
        draft: The draft's tokenizer.
        widths: Logits of target and draft, padding included; tokens beyond are left out.

    Raises:
        VocabularyMismatchError: Too few tokens are shared, or a tokenizer does not say what its tokens stand for.
    """
    mapped = intersect(read_vocabulary(target, widths[0]), read_vocabulary(draft, widths[1]), widths[0])
    if mapped.num_shared < SMALLEST_SHARE * mapped.num_tokens:
        raise VocabularyMismatchError(
            f"got a draft that has only {mapped}, expected at least {SMALLEST_SHARE:.0%}; "
            "use a draft whose vocabulary is nearer to the target's"
        )
    return mapped


def vocabulary_mismatch(target: Any, draft: Any, way_out: str) -> VocabularyMismatchError:
    """The refusal of another vocabulary: names the first differing id with both tokens, and what both share.

    Args:
        target: The target's tokenizer.
        draft: The draft's tokenizer.
        way_out: What allows the pair all the same.
    """
    vocabularies = [tokenizer.get_vocab() for tokenizer in (target, draft)]
    by_id = [{index: token for token, index in vocabulary.items()} for vocabulary in vocabularies]
    differing = min(index for index in by_id[0].keys() | by_id[1].keys() if by_id[0].get(index) != by_id[1].get(index))
    target_token, draft_token = (_describe(vocabulary.get(differing)) for vocabulary in by_id)
    try:
        mapped = map_vocabulary(target, draft, (max(by_id[0]) + 1, max(by_id[1]) + 1))
        hint = f", or {way_out} to draft only the tokens that both have: {mapped}"
    except VocabularyMismatchError:
        hint = ""
    return VocabularyMismatchError(
        f"got a draft with another vocabulary: id {differing} is {target_token} for the target and {draft_token} for "
        f"the draft, expected the same token; use a draft made for this target{hint}"
    )


def _differing_tokenizer(tokenizer: Any, target: Path | str, draft: Path | str) -> Any | None:
    """The draft's tokenizer where its vocabulary differs from the target's."""
    if isinstance(draft, Path):
        if not has_tokenizer(draft) or (isinstance(target, Path) and share_files(target, draft)):
            return None
    elif draft == target:
        return None
    other = load_tokenizer(draft, "draft")
    return None if tokenizer.get_vocab() == other.get_vocab() else other


def _describe(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
