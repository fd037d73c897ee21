"""Places in the texts of a batch: the end of the committed text, and nodes of a tree behind it."""

from typing import Self

import torch
from torch import Tensor

from mtad.structures.tree import TokenTree, has_bits

Path = tuple[int, ...]


class Places:
    """Where logits belong to: some places of every row, each at the end of a path of drafted tokens.

    Args:
        tokens: Drafted tokens, parents before children, `[batch, nodes]` int64.
        ancestors: Bit i is set when node i lies on the path to the place, `[batch, places]` int64; 0 is the end of
            the committed text.
    """

    def __init__(self, tokens: Tensor, ancestors: Tensor) -> None:
        self.tokens = tokens
        self.ancestors = ancestors
        self._paths: list[list[Path]] | None = None

    @classmethod
    def root(cls, pending: Tensor) -> Self:
        """The end of the committed text of every row; `pending` is `[batch]` int64."""
        nothing = pending.unsqueeze(1)
        return cls(nothing[:, :0], torch.zeros_like(nothing))

    @classmethod
    def of_tree(cls, tree: TokenTree) -> Self:
        """The end of the committed text and every node, as `ModelRunner.score_tree` orders them."""
        return cls(tree.tokens, torch.nn.functional.pad(tree.ancestors, (1, 0)))

    def on_path(self) -> Tensor:
        """Whether each node lies on the path to each place, `[batch, places, nodes]` bool."""
        return has_bits(self.ancestors.unsqueeze(-1), self.tokens.shape[1])

    def paths(self) -> list[list[Path]]:
        """Drafted tokens on the way to each place, by row; the first call reads from the device."""
        if self._paths is None:
            rows = zip(self.tokens.tolist(), self.on_path().tolist(), strict=True)
            self._paths = [
                [tuple(token for token, is_on in zip(tokens, place, strict=True) if is_on) for place in places]
                for tokens, places in rows
            ]
        return self._paths
