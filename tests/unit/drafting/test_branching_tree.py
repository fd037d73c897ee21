"""The branching tree drafter: children replayed with their own random numbers, laws, caches and settings."""

from collections import Counter

import numpy as np
import pytest
import torch
from tests.oracles import Law, invert, invert_without_replacement, largest_distance, log_softmax, table_logits
from tests.table_models import Run, controls, prefilled, random_table, seeded_controls, table_law
from tests.tree_enumeration import layout, sibling_draws

from mtad.config import GenerationOptions
from mtad.decoding import resolve_pair
from mtad.drafting import BranchingTreeDrafter, ChainDrafter
from mtad.errors import ConfigError
from mtad.sampling import Stream, uniform
from mtad.structures import RowSettings, TokenTree, ancestor_bitmask

PROMPTS = [[1], [2, 0, 3], [3, 3], [0, 1, 2, 3, 2]]
SETTINGS = [
    RowSettings(seed=1),
    RowSettings(seed=2, temperature=0.7),
    RowSettings(seed=3, top_k=2),
    RowSettings(seed=4, temperature=1.4, top_p=0.7, top_k=3),
]
COLUMNS = ("tokens", "parents", "depths", "joint_draft_log_probs", "ancestors", "winner", "valid")


def draft(
    table: torch.Tensor,
    branching: tuple[int, ...],
    prompts: list[list[int]],
    settings: list[RowSettings],
    *,
    with_replacement: bool = False,
) -> TokenTree:
    runner, previous, pending = prefilled(table, prompts)
    drafter = BranchingTreeDrafter(runner, branching, with_replacement=with_replacement)
    rows = controls(*settings, one_hot_at_zero=True).at(runner.lengths.clone())
    return drafter.draft(previous, pending, rows)


def expected_tokens(
    law: Law, branching: tuple[int, ...], numbers: list[list[float]], *, with_replacement: bool
) -> list[tuple[int, ...] | None]:
    """Path of every node in level order, None where nothing was left to draw."""
    level: list[tuple[int, ...] | None] = [()]
    paths: list[tuple[int, ...] | None] = []
    for count, of_depth in zip(branching, numbers, strict=True):
        grown: list[tuple[int, ...] | None] = []
        for place, path in enumerate(level):
            own = of_depth[place * count : (place + 1) * count]
            if path is None:
                grown += [None] * count
            elif with_replacement:
                grown += [(*path, invert(law(path), number)) for number in own]
            else:
                tokens = invert_without_replacement(law(path), own)
                grown += [(*path, token) if token >= 0 else None for token in tokens]
        level = grown
        paths += grown
    return paths


@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize("branching", [(4, 2, 2), (1, 3), (3,), (2, 1, 1, 2)])
def test_equals_the_definition(branching: tuple[int, ...], with_replacement: bool) -> None:
    table = random_table(0, 5, 3)
    tree = draft(table, branching, PROMPTS, SETTINGS, with_replacement=with_replacement)
    parents = [parent - 1 for parent in layout(branching)[1:]]
    assert tree.parents.tolist() == [parents] * 4
    assert torch.equal(tree.ancestors, ancestor_bitmask(tree.parents))
    assert tree.draft_log_probs is not None
    assert (tree.branching, tree.has_replacement, tree.depth) == (branching, with_replacement, len(branching))
    for row, (prompt, setting) in enumerate(zip(PROMPTS, SETTINGS, strict=True)):
        rows = controls(setting, positions=[len(prompt) - 1])
        sizes = np.cumprod(branching).tolist()
        numbers = [uniform(rows, Stream.DRAFT, depth, size)[0].tolist() for depth, size in enumerate(sizes, start=1)]
        law = table_law(table, prompt, setting)
        paths = expected_tokens(law, branching, numbers, with_replacement=with_replacement)
        assert tree.valid[row].tolist() == [path is not None for path in paths]
        for node, path in enumerate(paths):
            if path is None:
                continue
            joint = sum(float(law(path[:end])[token]) for end, token in enumerate(path))
            assert int(tree.tokens[row, node]) == path[-1]
            assert int(tree.depths[row, node]) == len(path)
            assert float(tree.joint_draft_log_probs[row, node]) == pytest.approx(joint, abs=1e-9)
            np.testing.assert_allclose(tree.draft_log_probs[row, node].numpy(), law(path[:-1]), atol=1e-9)


def test_siblings_without_replacement_are_distinct_and_end_with_the_support() -> None:
    tree = draft(random_table(1, 4, 2), (6, 2), PROMPTS, [RowSettings(seed=5), *SETTINGS[1:]])
    for row, support in enumerate([4, 4, 2, 3]):
        firsts = tree.tokens[row, :6][tree.valid[row, :6]].tolist()
        assert len(set(firsts)) == len(firsts) <= support
        below = tree.valid[row, 6:].view(6, 2)[~tree.valid[row, :6]]
        assert not below.any()
    assert tree.valid[0, :6].sum() == 4


def test_the_winner_is_the_most_probable_of_the_last_level() -> None:
    tree = draft(random_table(2, 5, 2), (3, 2), PROMPTS, SETTINGS)
    assert (tree.winner >= 3).all()
    last = tree.joint_draft_log_probs[:, 3:]
    assert torch.equal(tree.joint_draft_log_probs.gather(1, tree.winner.unsqueeze(1)).squeeze(1), last.amax(1))


@pytest.mark.parametrize("with_replacement", [True, False])
def test_greedy_rows_take_the_most_likely_children(with_replacement: bool) -> None:
    table = random_table(3, 5, 2)
    settings = [RowSettings(temperature=0, seed=seed, top_k=2) for seed in range(4)]
    tree = draft(table, (3, 2), PROMPTS, settings, with_replacement=with_replacement)
    assert tree.valid.all()
    for row, prompt in enumerate(PROMPTS):
        for parent, first, count in ((-1, 0, 3), (0, 3, 2), (1, 5, 2), (2, 7, 2)):
            path = [] if parent < 0 else [int(tree.tokens[row, parent])]
            scores = log_softmax(table_logits(table.numpy(), [*prompt, *path]))
            assert tree.tokens[row, first : first + count].tolist() == np.argsort(-scores)[:count].tolist()


def test_more_children_than_tokens_leave_invalid_nodes_in_greedy_rows() -> None:
    tree = draft(random_table(4, 3, 1), (5,), [[1]], [RowSettings(temperature=0)])
    assert tree.valid.tolist() == [[True, True, True, False, False]]


def test_one_child_per_node_is_the_chain_drafter() -> None:
    table = random_table(5, 5, 3)
    tree = draft(table, (1, 1, 1), PROMPTS, SETTINGS)
    runner, previous, pending = prefilled(table, PROMPTS)
    chain = ChainDrafter(runner, 3).draft(previous, pending, controls(*SETTINGS).at(runner.lengths.clone()))
    assert torch.equal(tree.tokens, chain.tokens)
    assert torch.equal(tree.ancestors, chain.ancestors)
    torch.testing.assert_close(tree.joint_draft_log_probs, chain.joint_draft_log_probs)


@pytest.mark.parametrize("with_replacement", [True, False])
def test_siblings_follow_their_law(with_replacement: bool) -> None:
    # Weissman's bound: a correct drafter fails this with probability below 1e-7.
    table, count = random_table(6, 3, 1), 20_000
    runner, previous, pending = prefilled(table, [[1]] * count)
    rows = seeded_controls(RowSettings(), torch.arange(count)).at(runner.lengths.clone())
    tree = BranchingTreeDrafter(runner, (2,), with_replacement=with_replacement).draft(previous, pending, rows)
    law = dict(sibling_draws(np.exp(table_law(table, [1])(())), 2, has_replacement=with_replacement))
    seen = Counter(map(tuple, tree.tokens.tolist()))
    assert set(seen) <= set(law)
    assert sum(abs(seen[pair] / count - prob) for pair, prob in law.items()) < largest_distance(9, count, 1e-7)


def test_a_row_does_not_depend_on_its_batch() -> None:
    table = random_table(7, 5, 3)
    together = draft(table, (3, 2), PROMPTS, SETTINGS)
    for row in range(4):
        alone = draft(table, (3, 2), PROMPTS[row : row + 1], SETTINGS[row : row + 1])
        for name in COLUMNS:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[row], rtol=0, atol=1e-12)


def test_the_cache_after_keeping_a_path_is_that_of_a_fresh_prefill() -> None:
    options = {"method": "mmtad", "drafter": "branching_tree", "branching": "3,2,2"}
    run = Run(random_table(9, 5, 4), random_table(10, 5, 4), options)
    decoder = run.decoder()
    decoder.prefill(PROMPTS, [RowSettings(seed=seed, threshold=0.05) for seed in range(4)], [30] * 4)
    committed = [list(prompt) for prompt in PROMPTS]
    lengths = set()
    for _ in range(6):
        for sequence, outcome in zip(committed, decoder.step([True] * 4), strict=True):
            assert outcome is not None
            sequence.extend(outcome.tokens)
            lengths.add(outcome.num_drafted)
        for runner in run.runners:
            fresh, previous, pending = prefilled(runner.table, committed)
            assert torch.equal(runner.lengths, fresh.lengths)
            with torch.inference_mode():
                logits = runner.score_root(decoder.previous, decoder.pending)
            assert torch.equal(logits, fresh.score_root(previous, pending))
    assert {1, 3} <= lengths


@pytest.mark.parametrize("text", ["", "4,", "4,0", "a", "4;2", "-1", "4.5", "2,2,2,2,2,2", "65", "9" * 30])
def test_a_bad_branching_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="branching must"):
        GenerationOptions(branching=text)


@pytest.mark.parametrize(("text", "counts"), [("4,2,2", (4, 2, 2)), (" 4 , 2", (4, 2)), ("64", (64,)), ("1", (1,))])
def test_a_good_branching_is_read(text: str, counts: tuple[int, ...]) -> None:
    assert GenerationOptions(branching=text).branching_counts == counts


@pytest.mark.parametrize(
    ("drafter", "verifier", "sentence"),
    [
        ("branching_tree", "token_rejection", "judges single paths.*use chain or prompt_lookup or early_exit$"),
        ("beam_tree", "tree_rejection", "needs tokens drawn from distributions.*use drafter chain or branching_tree"),
        ("dynamic_tree", "traversal", "needs tokens drawn from distributions.*use drafter chain or branching_tree"),
    ],
)
def test_rules_refuse_trees_they_cannot_judge(drafter: str, verifier: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve_pair(GenerationOptions(drafter=drafter, verifier=verifier))
