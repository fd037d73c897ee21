"""Prompt lookup against a slow search, row by row, and its answers against the target's law."""

import numpy as np
import pytest
import torch
from tests.enumeration import block_law
from tests.oracles import empirical_distance, largest_distance
from tests.table_models import Run, controls, random_table, table_law

from mtad.drafting import PromptLookupDrafter
from mtad.drafting.prompt_lookup import find_continuation
from mtad.structures import RowSettings, TokenTree

VOCAB = 5


def continuation(text: list[int], ngram: int) -> int:
    """Index behind the latest earlier occurrence of the longest tail that occurs earlier, 0 for none."""
    for length in range(min(ngram, len(text) - 1), 0, -1):
        tail = text[-length:]
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == tail:
                return end
    return 0


def padded(texts: list[list[int]], filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(text) for text in texts)
    tokens = torch.tensor([text + [filler] * (longest - len(text)) for text in texts])
    return tokens, torch.tensor([len(text) for text in texts])


def random_texts(seed: int, count: int = 200) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(VOCAB - 2, size=generator.integers(1, 14)).tolist() for _ in range(count)]


@pytest.mark.parametrize("ngram", [1, 2, 3, 20])
@pytest.mark.parametrize("filler", [0, 1, 2])
def test_the_latest_longest_match_is_found_in_every_row(ngram: int, filler: int) -> None:
    texts = random_texts(ngram)
    found = find_continuation(*padded(texts, filler), ngram).tolist()
    expected = [continuation(text, ngram) for text in texts]
    assert found == expected
    assert 0 in expected
    assert len(set(expected)) > 5


def drafted(texts: list[list[int]], gamma: int, ngram: int = 3) -> tuple[PromptLookupDrafter, TokenTree]:
    drafter = PromptLookupDrafter(gamma, ngram, VOCAB)
    tokens, lengths = padded(texts)
    drafter.runner.allocate(len(texts), tokens.shape[1] + 8)
    drafter.runner.prefill(tokens, lengths - 1)
    pending = tokens.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
    return drafter, drafter.draft(pending, pending, controls(*[RowSettings()] * len(texts)))


def proposals(tree: TokenTree) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(tree.tokens, tree.valid, strict=True)]


def test_what_followed_the_match_is_proposed_as_far_as_the_text_goes() -> None:
    texts = [[1, 2, 3, 4, 1, 2], [1, 2, 3, 0, 2, 3], [1, 2], [3], [4, 4], [1, 2, 3, 4, 2, 0, 1, 2]]
    _, tree = drafted(texts, 3)
    assert proposals(tree) == [[3, 4, 1], [0, 2, 3], [], [], [4], [3, 4, 2]]


@pytest.mark.parametrize("gamma", [1, 4])
def test_proposals_are_certain_and_absent_nodes_are_not_there(gamma: int) -> None:
    texts = random_texts(9)
    _, tree = drafted(texts, gamma)
    expected = []
    for text in texts:
        start = continuation(text, 3)
        expected.append(text[start : start + gamma] if start else [])
    assert proposals(tree) == expected
    assert tree.draft_log_probs is not None
    one_hot = torch.nn.functional.one_hot(tree.tokens, VOCAB).bool() & tree.valid.unsqueeze(-1)
    assert torch.equal(tree.draft_log_probs, torch.where(one_hot, 0.0, -torch.inf))
    assert torch.equal(tree.joint_draft_log_probs, torch.where(tree.valid, 0.0, -torch.inf))
    assert torch.equal(tree.valid, tree.valid.long().cumprod(1).bool())


@pytest.mark.parametrize("draft_length", ["fixed", "adaptive"])
def test_it_searches_the_whole_text_after_every_iteration(draft_length: str) -> None:
    options = {"method": "mmtad", "drafter": "prompt_lookup", "draft_length": draft_length}
    run = Run(random_table(1, VOCAB, 2), random_table(2, VOCAB), options)
    decoder = run.decoder()
    texts = [[1, 2], [3], [0, 1, 2, 3, 0]]
    decoder.prefill(texts, [RowSettings(seed=seed, threshold=0.1) for seed in range(3)], [30] * 3)
    drafter = decoder.drafter  # type: ignore[attr-defined]
    assert run.runners[1].num_calls == 0
    kept = 0
    for active in ([True] * 3, [True, False, True], [True] * 3, [False, True, True]) * 2:
        for text, outcome in zip(texts, decoder.step(active), strict=True):
            text.extend([] if outcome is None else outcome.tokens)
            kept += 0 if outcome is None else outcome.num_drafted
        history = drafter.runner
        assert [
            row[:length] for row, length in zip(history.tokens.tolist(), history.lengths.tolist(), strict=True)
        ] == texts
    assert kept > 5
    decoder.select_rows([2, 0])
    assert drafter.runner.lengths.tolist() == [len(texts[2]), len(texts[0])]


@pytest.mark.parametrize("verifier", ["token_rejection", "block", "tree_rejection", "traversal", "exact_match"])
def test_sampled_answers_follow_the_target(verifier: str) -> None:
    # Weissman's bound: a correct rule fails this with probability below 1e-6.
    target = random_table(11, 3, order=2)
    options = {"method": "speculative", "drafter": "prompt_lookup", "verifier": verifier, "gamma": 2}
    count, prompt = 10_000, [1, 2, 0, 1, 2]
    run = Run(target, target, options)
    results = run.generate([prompt] * count, [RowSettings(seed=seed) for seed in range(count)], [3] * count)
    law = block_law(table_law(target, prompt, RowSettings()), 3, 3)
    assert empirical_distance([result.token_ids for result in results], law) < largest_distance(27, count, 1e-6)
    assert max(max(result.accepted_lengths) for result in results) == 2
