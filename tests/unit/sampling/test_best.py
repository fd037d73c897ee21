"""The largest logits of a wide vocabulary are those of the whole row."""

import pytest
import torch

from mtad.sampling.best import best_logits


@pytest.mark.parametrize("vocab_size", [61, 1024, 5120, 49152, 50257])
@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_they_are_those_of_topk(vocab_size: int, count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, vocab_size, generator=generator).to(dtype)
    # All of them in one block, and at both ends of the row.
    logits[0, 0, 8 : 8 + count] += 20
    logits[0, 1, -1] += 20
    logits[0, 1, 0] += 19
    values, token_ids = best_logits(logits, count)
    assert torch.equal(values, logits.topk(count, dim=-1).values)
    assert torch.equal(logits.gather(-1, token_ids), values)
    assert all(len(set(row)) == count for row in token_ids.flatten(0, 1).tolist())


def test_minus_infinities_and_nans_are_ordered_as_in_topk() -> None:
    logits = torch.full((1, 4096), -torch.inf)
    logits[0, [5, 900]] = torch.tensor([1.0, 2.0])
    values, token_ids = best_logits(logits, 4)
    assert token_ids[0, :2].tolist() == [900, 5]
    assert values[0, 2:].tolist() == [-torch.inf] * 2
    logits[0, 77] = torch.nan
    values, token_ids = best_logits(logits, 4)
    assert token_ids[0, 0] == 77
    assert values[0, 0].isnan()


def test_a_row_is_cut_alike_alone_and_in_a_batch() -> None:
    logits = torch.randint(4, (5, 4096), generator=torch.Generator().manual_seed(1)).float()
    together = best_logits(logits, 10)[1]
    assert torch.equal(torch.cat([best_logits(row.unsqueeze(0), 10)[1] for row in logits]), together)
