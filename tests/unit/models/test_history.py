"""`TokenHistory` keeps ragged rows."""

import torch

from mtad.models.history import TokenHistory


def _history() -> TokenHistory:
    history = TokenHistory()
    history.allocate(3, 10)
    history.prefill(torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]]), torch.tensor([2, 0, 1]))
    return history


def _rows(history: TokenHistory) -> list[list[int]]:
    return [row[:length] for row, length in zip(history.tokens.tolist(), history.lengths.tolist(), strict=True)]


def test_the_prompts_are_there_in_full() -> None:
    assert _rows(_history()) == [[1, 2, 3], [4], [5, 6]]


def test_rows_grow_by_their_own_counts_and_idle_rows_stay() -> None:
    history = _history()
    tokens = torch.tensor([[7, 8], [9, 10], [11, 12]])
    history.append(tokens, torch.tensor([1, 2, 2]), torch.tensor([True, True, False]))
    assert _rows(history) == [[1, 2, 3, 7], [4, 9, 10], [5, 6]]


def test_rows_can_leave() -> None:
    history = _history()
    history.select_rows(torch.tensor([2, 0]))
    assert _rows(history) == [[5, 6], [1, 2, 3]]
