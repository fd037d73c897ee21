"""Packs a draft model for shipping: `python tools/pack_draft.py MODEL_FOLDER OUTPUT_FOLDER`.

Every matrix becomes int8 levels with one float32 scale per row. Weights that were trained to such rows survive bit for
bit; others need `--allow-loss`.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mtad.errors import MtadError
from mtad.models.pairs.folders import MANIFEST_NAME, file_sha256
from mtad.models.pairs.packed_draft import (
    CONFIG_NAMES,
    PACKED_NAME,
    SCALE_SUFFIX,
    WEIGHTS_NAME,
    expand_rows,
    expand_tensors,
    tensor_sha256,
)

_MAX_LEVEL = 127
_NUM_SCALES = 4096
_NUM_FITS = 8
# The largest weight of a row was rounded to bfloat16, so the row's scale is known to one part in 2^8 on either side.
_SCALE_UNCERTAINTY = 2.0**-8


def pack_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Finds int8 levels and a scale per row that give `weight [rows, columns]` back exactly, where there are any.

    Returns:
        Levels `[rows, columns]` int8, scales `[rows]` float32, and whether each row is exact `[rows]`. A row without
        an exact scale gets the one that maps its largest weight to 127.
    """
    values = weight.float()
    nominal = _likely_scales(weight)
    scales = torch.where(values.any(dim=1), values.abs().amax(dim=1) / _MAX_LEVEL, 1.0)
    is_exact = torch.zeros(len(weight), dtype=torch.bool)
    offsets = torch.linspace(-_SCALE_UNCERTAINTY, _SCALE_UNCERTAINTY, _NUM_SCALES + 1, dtype=torch.float64)
    for offset in offsets[offsets.abs().argsort()].tolist():
        open_rows = (~is_exact).nonzero().squeeze(1)
        if len(open_rows) == 0:
            break
        tried = nominal[open_rows] * (1 + offset)
        found = (expand_rows(_levels(values[open_rows], tried), tried) == weight[open_rows]).all(dim=1)
        scales[open_rows[found]] = tried[found]
        is_exact[open_rows[found]] = True
    return _levels(values, scales), scales, is_exact


def _likely_scales(weight: torch.Tensor) -> torch.Tensor:
    """Guesses the scale of each row: the middle of all scales that round every level to the weight that is there."""
    values = weight.abs().double()
    scales = values.amax(dim=1) / _MAX_LEVEL
    scales = torch.where(scales > 0, scales, 1.0)
    for _ in range(_NUM_FITS):
        levels = _levels(values, scales).double()
        scales = torch.where(levels.any(dim=1), (values * levels).sum(dim=1) / (levels**2).sum(dim=1), scales)
    levels = _levels(values, scales).double()
    bits = weight.abs().contiguous().view(torch.int16)
    low = (values + (bits - 1).view(torch.bfloat16)) / 2 / levels
    high = (values + (bits + 1).view(torch.bfloat16)) / 2 / levels
    lowest = torch.where(levels > 0, low, 0.0).amax(dim=1)
    highest = torch.where(levels > 0, high, torch.inf).amin(dim=1)
    return torch.where(highest < torch.inf, (lowest + highest) / 2, scales).float()


def _levels(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (values / scales[:, None]).round().clamp(-_MAX_LEVEL, _MAX_LEVEL).to(torch.int8)


def pack_tensors(tensors: dict[str, torch.Tensor], *, allow_loss: bool) -> dict[str, torch.Tensor]:
    """Packs the matrices among `tensors` (bfloat16) and keeps the vectors.

    Raises:
        MtadError: A row has no exact scale and `allow_loss` is false.
    """
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            packed[name] = tensor
            continue
        packed[name], packed[name + SCALE_SUFFIX], is_exact = pack_rows(tensor)
        if not is_exact.all() and not allow_loss:
            raise MtadError(
                f"got {int((~is_exact).sum())} of {len(tensor)} rows of {name} that int8 cannot hold exactly, "
                "expected none; pass --allow-loss to round them"
            )
    return packed


def pack_draft(model_folder: Path, output_folder: Path, *, allow_loss: bool) -> None:
    """Writes the packed draft of `model_folder` and its manifest to `output_folder`."""
    packed = pack_tensors(load_file(model_folder / WEIGHTS_NAME), allow_loss=allow_loss)
    output_folder.mkdir(parents=True, exist_ok=True)
    packed_path = output_folder / PACKED_NAME
    save_file(packed, packed_path)
    packed_path.chmod(0o644)
    for name in CONFIG_NAMES:
        shutil.copyfile(model_folder / name, output_folder / name)
    manifest = {
        "packed_sha256": file_sha256(packed_path),
        "packed_bytes": packed_path.stat().st_size,
        "tensor_sha256": {name: tensor_sha256(tensor) for name, tensor in sorted(expand_tensors(packed).items())},
    }
    (output_folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Pack a draft model for shipping with mtad.")
    parser.add_argument("model_folder", type=Path, help="Hugging Face folder with one bfloat16 model.safetensors")
    parser.add_argument("output_folder", type=Path, help="where the packed draft is written")
    parser.add_argument("--allow-loss", action="store_true", help="round rows that int8 cannot hold exactly")
    options = parser.parse_args(arguments)
    try:
        pack_draft(options.model_folder, options.output_folder, allow_loss=options.allow_loss)
    except (MtadError, OSError) as error:
        print(f"pack_draft: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
