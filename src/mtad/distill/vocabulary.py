"""Which of the target's tokens a draft with `--vocab` keeps, and how a whole draft is cut down to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtad.config import DistillOptions
from mtad.distill.shapes import DraftShape
from mtad.distill.store import StoredTexts
from mtad.errors import ConfigError, DistillError, VocabularyMismatchError
from mtad.models.checkpoints import read_model_config
from mtad.models.intersection import VocabularyMap
from mtad.models.loading import LoadedModels
from mtad.models.low_rank_head import split_head
from mtad.models.runner import ModelRunner
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.translated_runner import TranslatedRunner
from mtad.models.trimmed_vocabulary import VOCABULARY_FILE, kept_tokens, load_vocabulary, trim_vocabulary


def check_drafts(models: LoadedModels, shapes: Sequence[DraftShape], options: DistillOptions) -> VocabularyMap | None:
    """Find out before any text is sampled that such drafts cannot be made.

    Returns:
        Tokens of the drafts, as many as there will be; with `--vocab` others may be chosen once there is text.

    Raises:
        ConfigError: As `find_vocabulary`.
        DistillError: As `choose_vocabulary` and `thin_head`.
        VocabularyMismatchError: As `find_vocabulary`.
    """
    _check_init(options)
    vocabulary = find_vocabulary(models, None, options)
    for shape in shapes:
        if options.head_rank is not None and options.init in ("pca", "random"):
            _check_rank(options.head_rank, shape.hidden)
    return vocabulary


def _check_init(options: DistillOptions) -> None:
    """Several drafts that begin as the same one would end as the same one."""
    if len(options.size) > 1 and options.init not in ("pca", "layers", "random") and "{size}" not in options.init:
        raise ConfigError(
            f"got one draft to begin {len(options.size)} sizes with ({options.init}), expected one each; let {{size}} "
            "stand for the name of the size, or train one size at a time"
        )


def find_vocabulary(models: LoadedModels, texts: StoredTexts | None, options: DistillOptions) -> VocabularyMap | None:
    """The tokens of the drafts: those of the draft to begin with, else the asked number; None means all.

    Raises:
        ConfigError: `--vocab` is not the number of tokens that the draft to begin with has.
        DistillError: As `choose_vocabulary`.
        VocabularyMismatchError: The draft to begin with belongs to another target.
    """
    folder = Path(options.init_for(options.size[0])).expanduser()
    if (folder / VOCABULARY_FILE).is_file():
        draft_width = int(read_model_config(folder, "draft").get_text_config(decoder=True).vocab_size)
        found = load_vocabulary(folder, models.tokenizer, (models.target.vocab_size, draft_width))
        if options.vocab is not None and options.vocab != draft_width:
            raise ConfigError(
                f"got --vocab {options.vocab} and --init {options.init}, whose draft has {draft_width} tokens; leave "
                "--vocab out, or begin with another draft"
            )
        return found
    return None if options.vocab is None else choose_vocabulary(models, texts, options.vocab)


def choose_vocabulary(models: LoadedModels, texts: StoredTexts | None, count: int) -> VocabularyMap:
    """The special tokens and the most frequent others of the sampled text, ties and the rest by id.

    Args:
        models: The target.
        texts: What was sampled; None takes the lowest ids, for timing.
        count: Tokens to keep.

    Raises:
        DistillError: The tokenizer does not say what its tokens stand for, or has no more tokens than these.
    """
    width = models.target.vocab_size
    specials = {int(token) for token in (*models.tokenizer.all_special_ids, *models.defaults.eos_token_ids)}
    if not len(specials) < count < width:
        raise DistillError(
            f"got --vocab {count}, expected more than the {len(specials)} special tokens and fewer than the target's "
            f"{width}; change it or leave it out"
        )
    frequencies = np.zeros(width, dtype=np.int64) if texts is None else texts.frequencies(width)
    frequencies[[token for token in specials if token < width]] = np.iinfo(np.int64).max
    kept = np.argsort(-frequencies, kind="stable")[:count]
    try:
        return trim_vocabulary(models.tokenizer, np.sort(kept).tolist(), width)
    except VocabularyMismatchError as error:
        raise DistillError(f"--vocab needs to know what the target's tokens stand for: {error}") from error


@torch.no_grad()
def trim_draft(draft: Any, vocabulary: VocabularyMap) -> None:
    """Keep only some rows of a whole draft's embeddings and output head, in place."""
    kept = kept_tokens(vocabulary)
    embeddings, head = draft.get_input_embeddings(), draft.get_output_embeddings()
    is_tied = head.weight is embeddings.weight
    inner = nn.Embedding(len(kept), embeddings.embedding_dim, device="meta")
    inner.weight = nn.Parameter(embeddings.weight[kept.to(embeddings.weight.device)])
    outer = nn.Linear(head.in_features, len(kept), bias=head.bias is not None, device="meta")
    outer.weight = inner.weight if is_tied else nn.Parameter(head.weight[kept.to(head.weight.device)])
    if head.bias is not None:
        outer.bias = nn.Parameter(head.bias[kept.to(head.bias.device)])
    draft.set_input_embeddings(inner)
    draft.set_output_embeddings(outer)
    config = draft.config.get_text_config(decoder=True)
    config.vocab_size = len(kept)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, role, own_ids(getattr(config, role, None), vocabulary))


def own_ids(token_ids: int | list[int] | None, vocabulary: VocabularyMap | None) -> Any:
    """A draft's ids of some target tokens, in the shape in which configurations have them; those it lacks are left out.

    Args:
        token_ids: One, several, or None.
        vocabulary: None where the draft has the target's own.
    """
    if vocabulary is None or token_ids is None:
        return token_ids
    wanted = [token_ids] if isinstance(token_ids, int) else token_ids
    limit = len(vocabulary.draft_ids)
    found = [int(vocabulary.draft_ids[token]) for token in wanted if 0 <= token < limit]
    found = [token for token in found if token >= 0]
    return (found[0] if len(found) == 1 else found) if found else None


def thin_head(draft: Any, rank: int) -> None:
    """Replace the output head by two thin matrices, in place; the embeddings are no longer tied to it.

    Raises:
        DistillError: The rank is no smaller than the width.
    """
    head = draft.get_output_embeddings()
    _check_rank(rank, head.in_features)
    draft.config.get_text_config(decoder=True).tie_word_embeddings = False
    draft.config.tie_word_embeddings = False
    draft.set_output_embeddings(split_head(head.weight.detach(), rank))


def _check_rank(rank: int, width: int) -> None:
    if rank >= width:
        raise DistillError(
            f"got --head-rank {rank} for a draft of width {width}, expected less than its width; lower it or leave it "
            "out"
        )


def serve_student(draft: Any, vocab_size: int, vocabulary: VocabularyMap | None) -> ModelRunner:
    """A runner that speaks the target's tokens.

    Args:
        draft: A model in its final dtype; its attention is switched in place.
        vocab_size: The target's.
        vocabulary: Where the draft has some of the tokens only.
    """
    runner = TransformersRunner(draft, vocab_size=vocab_size if vocabulary is None else None)
    runner.attach()
    return runner if vocabulary is None else TranslatedRunner(runner, vocabulary)


def read_as(tokens: Tensor, vocabulary: VocabularyMap | None) -> Tensor:
    """What a draft is fed for the target's tokens."""
    return tokens if vocabulary is None else vocabulary.fed_ids.to(tokens.device)[tokens]
