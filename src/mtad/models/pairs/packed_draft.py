"""A draft model as mtad ships it: one int8 per weight and one float32 scale per row.

The draft's bfloat16 weights were rounded to rows of 255 levels when it was trained, so nothing is lost: expanding a
packed draft gives back every bit of them. `manifest.json` holds the SHA-256 of each tensor to prove it.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mtad.errors import PairDownloadError
from mtad.models.pairs.folders import MANIFEST_NAME, file_sha256

PACKED_NAME = "draft.safetensors"
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAMES = ("config.json", "generation_config.json")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SCALE_SUFFIX = ".row_scale"


def expand_rows(levels: torch.Tensor, row_scales: torch.Tensor) -> torch.Tensor:
    """Returns the bfloat16 weights `[rows, columns]` of int8 `levels` and float32 `row_scales [rows]`."""
    return (levels.float() * row_scales[:, None]).to(torch.bfloat16)


def expand_tensors(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the bfloat16 tensors of a packed draft; tensors without row scales are kept as they are."""
    return {
        name: expand_rows(tensor, packed[name + SCALE_SUFFIX]) if name + SCALE_SUFFIX in packed else tensor
        for name, tensor in packed.items()
        if not name.endswith(SCALE_SUFFIX)
    }


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Returns the SHA-256 of a tensor's bytes in row-major order."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def expand_draft(packed_folder: Path, target: Path, folder: Path) -> None:
    """Writes a packed draft to `folder` as a Hugging Face model with the tokenizer of the folder `target`.

    Raises:
        PairDownloadError: The packed draft is not the one its manifest describes.
    """
    packed_path = packed_folder / PACKED_NAME
    manifest = json.loads((packed_folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    if not packed_path.is_file() or file_sha256(packed_path) != manifest["packed_sha256"]:
        raise PairDownloadError(
            f"got a missing or damaged {packed_path}, expected the packed draft that mtad ships; reinstall mtad"
        )
    folder.mkdir()
    save_file(expand_tensors(load_file(packed_path)), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    for name in CONFIG_NAMES:
        shutil.copyfile(packed_folder / name, folder / name)
    for name in TOKENIZER_NAMES:
        if (target / name).exists():
            shutil.copyfile(target / name, folder / name)
