"""A model with the vocabulary of another: the same weights under permuted ids, some tokens left out."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def save_with_other_vocabulary(source: Path, folder: Path, *, dropped_share: float, seed: int = 0) -> list[int]:
    """Write a Llama folder whose token ids are shuffled, with its tokenizer.

    Args:
        source: The model to read, with a byte-level tokenizer.json.
        folder: Where to write; created.
        dropped_share: Share of the tokens of several letters that are left out.
        seed: Of the shuffle and of the choice.

    Returns:
        The ids that were left out.
    """
    described = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = described["model"]["vocab"]
    special = {token["content"] for token in described["added_tokens"]}
    generator = random.Random(seed)
    long = sorted(token for token in vocabulary if len(token) > 1 and token not in special)
    dropped = set(generator.sample(long, round(dropped_share * len(long))))
    kept = [token for token in vocabulary if token not in dropped]
    generator.shuffle(kept)
    order = {token: index for index, token in enumerate(kept)}
    folder.mkdir()
    _save_tokenizer(source, folder, described, order)
    _save_model(source, folder, [vocabulary[token] for token in kept], {vocabulary[t]: order[t] for t in special})
    return sorted(vocabulary[token] for token in dropped)


def _save_tokenizer(source: Path, folder: Path, described: dict[str, Any], order: dict[str, int]) -> None:
    for token in described["added_tokens"]:
        token["id"] = order[token["content"]]
    described["added_tokens"].sort(key=lambda token: token["id"])
    described["model"]["vocab"] = order
    described["model"]["merges"] = [
        merge for merge in described["model"]["merges"] if {merge[0], merge[1], "".join(merge)} <= order.keys()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text(encoding="utf-8"))


def _save_model(source: Path, folder: Path, old_ids: list[int], special: dict[int, int]) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(old_ids)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if config.get(name) is not None:
            config[name] = special[config[name]]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    rows = torch.tensor(old_ids)
    weights |= {name: weights[name][rows].contiguous() for name in EMBEDDINGS if name in weights}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
