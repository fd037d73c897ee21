"""Lists of likely tokens say of a distribution what draws and scores need."""

import numpy as np
import pytest
import torch
from tests.table_models import controls

from mtad.decoding.sparse import NUM_LISTED, ReducedVocabulary, SparseLaws, list_laws, sort_keys
from mtad.sampling import draw_categorical, warp_logits
from mtad.structures import RowSettings

VOCAB = 400
ROWS = [
    RowSettings(top_k=10),
    RowSettings(top_k=0, top_p=1.0),
    RowSettings(top_k=0, top_p=0.5, temperature=0.7),
    RowSettings(top_k=NUM_LISTED),
    RowSettings(top_k=NUM_LISTED + 1, temperature=3.0),
]
PLACES = 3
ALWAYS = torch.tensor([[399, 0, 17], [398, 0, 23], [5, 6, 7], [1, 2, 3], [4, 4, 4]])


def laws(settings: list[RowSettings], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, SparseLaws]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(settings), PLACES, VOCAB, generator=generator)
    rows = controls(*settings)
    log_probs = warp_logits(logits, rows)
    return logits, log_probs, list_laws(log_probs, logits, ALWAYS[: len(settings)], rows.is_greedy)


def dense(listed: SparseLaws, values: np.ndarray, fill: float) -> tuple[torch.Tensor, np.ndarray]:
    """The lists over a reduced vocabulary of each row, and the token of every number."""
    rows, places = listed.counts.shape
    law = np.repeat(np.arange(rows * places), listed.counts.ravel())
    keys, steps = sort_keys(listed.entries), law // places
    vocabulary = ReducedVocabulary(keys, steps, rows)
    full = np.full((rows, places, vocabulary.size), fill, dtype=values.dtype)
    full[steps, law % places, vocabulary.numbers(keys, steps)] = values
    return torch.from_numpy(full), vocabulary.token_ids


def test_narrow_distributions_are_listed_in_full_and_wide_ones_in_part() -> None:
    _, log_probs, listed = laws(ROWS)
    support = (log_probs > -torch.inf).sum(-1).numpy()
    is_wide = support > NUM_LISTED
    assert is_wide.any(1).tolist() == [False, True, False, False, True]
    assert (listed.counts[~is_wide] == support[~is_wide]).all()
    assert (listed.counts[is_wide] > NUM_LISTED).all()
    assert (listed.counts[is_wide] <= 2 * (NUM_LISTED + 3) + 1).all()


def test_every_listed_token_has_its_own_log_probabilities() -> None:
    logits, log_probs, listed = laws(ROWS)
    law = np.repeat(np.arange(len(ROWS) * PLACES), listed.counts.ravel())
    tokens = listed.entries >= 0
    row, place, token = law[tokens] // PLACES, law[tokens] % PLACES, listed.entries[tokens]
    assert (listed.log_probs[tokens] == log_probs[row, place, token].numpy()).all()
    expected = logits.log_softmax(-1)[row, place, token].numpy()
    assert listed.unwarped[tokens] == pytest.approx(expected, abs=1e-5)


def test_masses_of_a_list_sum_to_one_and_its_scores_to_the_expected_score() -> None:
    logits, log_probs, listed = laws(ROWS)
    masses, _ = dense(listed, listed.log_probs, -np.inf)
    scores, _ = dense(listed, listed.unwarped, 0.0)
    assert torch.allclose(masses.double().exp().sum(-1), torch.ones(len(ROWS), PLACES, dtype=torch.float64), atol=1e-5)
    expected = (log_probs.double().exp() * logits.double().log_softmax(-1)).sum(-1)
    assert torch.allclose((masses.double().exp() * scores).sum(-1), expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_finds_the_same_token_as_over_the_whole_vocabulary(seed: int) -> None:
    _, log_probs, listed = laws(ROWS, seed)
    masses, token_ids = dense(listed, listed.log_probs, -np.inf)
    uniforms = torch.rand(len(ROWS), 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    num_unlisted = 0
    for place in range(PLACES):
        whole = draw_categorical(log_probs[:, place], uniforms)
        reduced = torch.from_numpy(token_ids).gather(1, draw_categorical(masses[:, place], uniforms))
        is_listed = reduced >= 0
        assert (reduced == whole)[is_listed].all()
        assert is_listed[[0, 2, 3]].all()
        num_unlisted += int((~is_listed).sum())
        for row in (1, 4):
            kept = listed.entries[: listed.counts.ravel()[: row * PLACES + place + 1].sum()][
                -listed.counts[row, place] :
            ]
            assert not np.isin(whole[row][~is_listed[row]].numpy(), kept[kept >= 0]).any()
    assert num_unlisted > 0


def test_unlisted_tokens_of_a_greedy_row_are_one_entry() -> None:
    _, log_probs, listed = laws([RowSettings(temperature=0)])
    assert (listed.counts[0] <= NUM_LISTED + 4).all()
    marks = listed.entries[listed.entries < 0]
    assert marks.tolist() == [-1 - VOCAB] * PLACES
    assert int((log_probs > -torch.inf).sum()) == PLACES * VOCAB


def test_tokens_that_must_be_listed_are() -> None:
    _, _, listed = laws(ROWS)
    counts = listed.counts.ravel()
    for row in (1, 4):
        for place in range(PLACES):
            start = counts[: row * PLACES + place].sum()
            entries = listed.entries[start : start + listed.counts[row, place]]
            wanted = set(ALWAYS[row].tolist()) if row == 1 else set()
            assert wanted <= set(entries.tolist())
            assert (np.diff(sort_keys(entries)) > 0).all()
