"""How a draft begins, before it has seen any text."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mtad.distill.shapes import DraftShape
from mtad.distill.teacher import check_plain_head
from mtad.distill.vocabulary import thin_head, trim_draft
from mtad.errors import ConfigError
from mtad.models.checkpoints import load_causal_model, read_model_config
from mtad.models.intersection import VocabularyMap
from mtad.models.low_rank_head import LowRankHead, load_head
from mtad.models.trimmed_vocabulary import VOCABULARY_FILE

_LAYER = re.compile(r"\.(layers|h|blocks)\.(\d+)\.")
_EMBEDDING_SCALE = 0.02


def check_beginning(shape: DraftShape, target: Any, init: str, vocabulary: VocabularyMap | None = None) -> None:
    """Find out before any text is sampled that a draft cannot begin so; arguments and errors as of `begin_draft`."""
    config = target.config.get_text_config(decoder=True)
    if init == "layers":
        _check_layers(shape.layers, config)
    elif init not in ("pca", "random"):
        _folder_config(init, int(config.vocab_size), vocabulary)


def begin_draft(
    shape: DraftShape,
    target: Any,
    init: str,
    seed: int,
    *,
    vocabulary: VocabularyMap | None = None,
    head_rank: int | None = None,
) -> Any:
    """A draft in float32 (float64 for a float64 target) on the target's device, ready to be trained.

    Args:
        shape: Width and depth; `layers` keeps the target's width, and a folder has both already.
        target: The target as transformers loads it, unpacked.
        init: `pca`, `layers`, `random`, or the folder of a draft with the target's vocabulary.
        seed: Of the random weights.
        vocabulary: Tokens to keep; None keeps all.
        head_rank: Rank of the output head; None leaves it whole.

    Raises:
        ConfigError: The folder's draft has another vocabulary, or the target has too few layers.
        DistillError: The rank is too large.
        ModelLoadError: The folder cannot be loaded.
    """
    device = target.get_input_embeddings().weight.device
    wide = torch.promote_types(target.get_input_embeddings().weight.dtype, torch.float32)
    config = target.config.get_text_config(decoder=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if init == "layers":
            draft = _from_layers(target, shape.layers)
        elif init in ("pca", "random"):
            draft = AutoModelForCausalLM.from_config(shape.config(config))  # type: ignore[no-untyped-call]
        else:
            draft = _from_folder(init, int(config.vocab_size), vocabulary, device)
    draft = draft.to(device=device, dtype=wide)
    if init == "pca":
        components = principal_components(target.get_input_embeddings().weight, shape.hidden)
        draft.get_input_embeddings().weight.data.copy_(components)
    if vocabulary is not None and draft.get_input_embeddings().num_embeddings == len(vocabulary.draft_ids):
        trim_draft(draft, vocabulary)
    if head_rank is not None and not isinstance(draft.get_output_embeddings(), LowRankHead):
        thin_head(draft, head_rank)
    check_plain_head(draft.eval(), shape.name)
    return draft.requires_grad_(True)


@torch.no_grad()
def principal_components(embeddings: Tensor, count: int) -> Tensor:
    """The embeddings in the basis of their largest principal components, scaled to a usual spread.

    Args:
        embeddings: `[vocab, width]`.
        count: Components; where it exceeds the width, the others are zero.

    Returns:
        `[vocab, count]` in at least float32.
    """
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    centred = wide - wide.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    found = centred @ vectors.flip(1)[:, :count]
    scaled = found * (_EMBEDDING_SCALE / found.std())
    return nn.functional.pad(scaled, (0, count - found.shape[1]))


def _from_folder(init: str, vocab_size: int, vocabulary: VocabularyMap | None, device: torch.device) -> Any:
    config, folder = _folder_config(init, vocab_size, vocabulary), Path(init).expanduser()
    return load_head(load_causal_model(folder, "draft", config, dtype=torch.float32, device=device), folder)


def _folder_config(init: str, vocab_size: int, vocabulary: VocabularyMap | None) -> Any:
    folder = Path(init).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"init must be pca, layers, random or the folder of a draft, got {init!r}; check the spelling"
        )
    config = read_model_config(folder, "draft")
    width = int(config.get_text_config(decoder=True).vocab_size)
    is_trimmed = (folder / VOCABULARY_FILE).is_file() and vocabulary is not None and width == vocabulary.num_shared
    if width != vocab_size and not is_trimmed:
        raise ConfigError(
            f"got --init {init} with a vocabulary of {width}, expected the target's {vocab_size}; use --init pca"
        )
    return config


def _from_layers(target: Any, count: int) -> Any:
    config = type(target.config).from_dict(target.config.to_dict())
    _check_layers(count, config)
    available = int(config.num_hidden_layers)
    chosen = [round(index * (available - 1) / max(count - 1, 1)) for index in range(count)]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in chosen]
    draft = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    found = target.state_dict()
    wanted = {
        name: found[_LAYER.sub(lambda part: f".{part[1]}.{chosen[int(part[2])]}.", name)] for name in draft.state_dict()
    }
    draft.load_state_dict(wanted)
    return draft


def _check_layers(count: int, config: Any) -> None:
    available = int(config.num_hidden_layers)
    if count > available:
        raise ConfigError(f"got {count} layers for --init layers, expected at most the target's {available}")
