"""An output head in two thin matrices, for drafts whose vocabulary costs more than their layers."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtad.errors import ModelLoadError
from mtad.models.checkpoints import loading_errors

HEAD_FILE = "low_rank_head.safetensors"
"""Lies beside a draft's `model.safetensors`, which holds the product of both matrices for everybody else."""


class LowRankHead(nn.Module):
    """Logits through a narrow middle: `up(down(hidden))`.

    Args:
        down: Weight of the first matrix, `[rank, hidden]`.
        up: Weight of the second, `[vocab, rank]`.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        rank, self.in_features = down.shape
        self.out_features = len(up)
        self.down = nn.Linear(self.in_features, rank, bias=False, device="meta")
        self.up = nn.Linear(rank, self.out_features, bias=False, device="meta")
        self.down.weight, self.up.weight = nn.Parameter(down), nn.Parameter(up)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., vocab]`."""
        logits: Tensor = self.up(self.down(hidden))
        return logits

    @torch.no_grad()
    def product(self) -> Tensor:
        """The same head as one matrix, `[vocab, hidden]`."""
        return self.up.weight @ self.down.weight


@torch.no_grad()
def split_head(weight: Tensor, rank: int) -> LowRankHead:
    """The best head of a rank for one that is there (Eckart and Young 1936).

    Args:
        weight: `[vocab, hidden]`.
        rank: At most the width.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    kept = vectors.flip(1)[:, :rank]
    return LowRankHead(kept.T.contiguous().to(weight.dtype), (wide @ kept).to(weight.dtype))


def save_head(head: LowRankHead, folder: Path, dtype: torch.dtype) -> None:
    """Write both matrices into a draft's folder."""
    tensors = {name: weight.detach().to(dtype).contiguous() for name, weight in head.state_dict().items()}
    save_file(tensors, folder / HEAD_FILE)


def load_head(model: Any, folder: Path) -> Any:
    """Give a loaded draft the thin head of its folder; a folder without one changes nothing.

    Raises:
        ModelLoadError: The file is damaged or belongs to another model.
    """
    path = folder / HEAD_FILE
    if not path.is_file():
        return model
    whole = model.get_output_embeddings().weight
    with loading_errors("low-rank head", path):
        found = load_file(path, device=str(whole.device))
        down, up = found["down.weight"], found["up.weight"]
    if (len(up), down.shape[1]) != tuple(whole.shape) or len(down) != up.shape[1]:
        raise ModelLoadError(
            f"got {path} with matrices of {tuple(down.shape)} and {tuple(up.shape)}, expected a head of "
            f"{tuple(whole.shape)}; copy the whole folder again"
        )
    model.set_output_embeddings(LowRankHead(down.to(whole.dtype), up.to(whole.dtype)).requires_grad_(False))
    return model
