"""A trained draft becomes a Hugging Face folder with a model card."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtad.distill.vocabulary import own_ids
from mtad.distill.work import WorkFolder, disk_errors
from mtad.models.intersection import VocabularyMap
from mtad.models.loading import LoadedModels
from mtad.models.low_rank_head import LowRankHead, save_head
from mtad.models.quiet import quiet_libraries
from mtad.models.trimmed_vocabulary import save_vocabulary

CARD = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {target}
tags: [speculative-decoding, draft]
---

# A draft for {target}

A {model_type} of {parameters:.1f}M parameters ({shape}), distilled by `mtad distill` from text that the target wrote.
It is no model to talk to: it proposes tokens, and the target decides.

    mtad generate --target {target} --draft THIS_FOLDER "Hello"
    {elsewhere}

| measured on held-out text of the target | before | after |
|---|---|---|
{figures}

Overlap is the mean of sum(min(p, q)) over places of the answers, at temperature 1 and unfiltered: the share of tokens
that plain speculative sampling keeps. Tokens per call is what one call of the target yields.

| made from | |
|---|---|
| text | {texts:,} texts, {tokens:,} tokens, sampled at temperatures {temperatures} |
| prompts | {prompts} |
| begun from | {init} |
| loss | {loss} on the target's whole distribution |
| beams of its own | {on_policy} |
| tokens seen | {seen:,} |
| time | {sampling_s:.0f} s of sampling ({sampling_rate:,.0f} tokens/s), {training_s:.0f} s of training \
({training_rate:,.0f} tokens/s) on {device} |
| command | `{command}` |

The licences of the target and of the prompts apply to it.
"""


def write_draft(
    folder: Path,
    work: WorkFolder,
    draft: Any,
    models: LoadedModels,
    card: dict[str, Any],
    vocabulary: VocabularyMap | None,
) -> None:
    """Save model, tokenizer, generation config and card; nobody sees half a folder.

    A low-rank head is saved beside the model, which gets its product; a trimmed vocabulary instead of the tokenizer.

    Args:
        folder: Created, or filled up.
        work: A place on the same disk.
        draft: The trained model.
        models: The target's, for tokenizer, dtype and generation config.
        card: The fields of `CARD`.
        vocabulary: Where the draft has some of the target's tokens only.

    Raises:
        DistillError: The disk is full or the folder not writable.
    """
    dtype = getattr(torch, models.options.dtype)
    saved = dtype if dtype.itemsize == 2 else torch.float32
    scratch = work.path / "write"
    with disk_errors(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _keep_thin_head(draft, scratch, saved)
        draft.to(saved)
        draft.generation_config = _generation_config(models, vocabulary)
        with quiet_libraries():
            draft.save_pretrained(scratch)
            if vocabulary is None:
                models.tokenizer.save_pretrained(scratch)
        if vocabulary is not None:
            save_vocabulary(vocabulary, models.tokenizer, scratch)
        (scratch / "README.md").write_text(CARD.format(**card), encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        # The weights come last: a folder with weights is whole.
        for file in sorted(scratch.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            file.replace(folder / file.name)
        scratch.rmdir()


def _keep_thin_head(draft: Any, folder: Path, dtype: torch.dtype) -> None:
    """Save a low-rank head on its own and leave its product in the draft."""
    head = draft.get_output_embeddings()
    if isinstance(head, LowRankHead):
        save_head(head, folder, dtype)
        whole = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
        whole.weight = nn.Parameter(head.product())
        draft.set_output_embeddings(whole)


def _generation_config(models: LoadedModels, vocabulary: VocabularyMap | None) -> Any:
    from transformers import GenerationConfig

    found = models.target.model.generation_config
    ends = sorted(models.defaults.eos_token_ids)
    padding = found.pad_token_id if found.pad_token_id is not None else (ends[0] if ends else None)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=own_ids(found.bos_token_id, vocabulary),
        eos_token_id=own_ids(ends[0] if len(ends) == 1 else ends or None, vocabulary),
        pad_token_id=own_ids(padding, vocabulary),
    )
