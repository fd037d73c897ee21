"""A trained draft becomes a Hugging Face folder with a model card."""

import shutil
from pathlib import Path
from typing import Any

import torch

from mtad.distill.work import WorkFolder, disk_errors
from mtad.models.quiet import quiet_libraries

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
    target.generate(**inputs, assistant_model=AutoModelForCausalLM.from_pretrained("THIS_FOLDER"))

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
| tokens seen | {seen:,} |
| time | {sampling_s:.0f} s of sampling, {training_s:.0f} s of training on {device} |
| command | `{command}` |

The licences of the target and of the prompts apply to it.
"""


def write_draft(folder: Path, work: WorkFolder, draft: Any, models: Any, card: dict[str, Any]) -> None:
    """Save model, tokenizer, generation config and card; nobody sees half a folder.

    Args:
        folder: Created, or filled up.
        work: A place on the same disk.
        draft: The trained model.
        models: The target's, for tokenizer, dtype and generation config.
        card: The fields of `CARD`.

    Raises:
        DistillError: The disk is full or the folder not writable.
    """
    dtype = getattr(torch, models.options.dtype)
    saved = dtype if dtype.itemsize == 2 else torch.float32
    scratch = work.path / "write"
    with disk_errors(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        draft.to(saved)
        draft.generation_config = _generation_config(models)
        with quiet_libraries():
            draft.save_pretrained(scratch)
            models.tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(CARD.format(**card), encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        # The weights come last: a folder with weights is whole.
        for file in sorted(scratch.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            file.replace(folder / file.name)
        scratch.rmdir()


def _generation_config(models: Any) -> Any:
    from transformers import GenerationConfig

    found = models.target.model.generation_config
    ends = sorted(models.defaults.eos_token_ids)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=found.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=found.pad_token_id if found.pad_token_id is not None else (ends[0] if ends else None),
    )
