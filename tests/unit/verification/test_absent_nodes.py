"""Rows that draft less than the shape has room for: no rule may tell an absent node from a shorter draft."""

import pytest
import torch
from tests.enumeration import Drafts, Probe, block_law, largest_deviation, random_law
from tests.oracles import Array, Path, log_softmax
from tests.table_models import seeded_controls
from tests.tree_enumeration import (
    Decide,
    as_drafts,
    drafted_trees,
    emitted,
    expected_length,
    rejection_decisions,
    traversal_decisions,
)

from mtad.structures import RowSettings, TokenTree
from mtad.verification import VERIFIERS, RuleSettings, TargetOnly

SEEDS = 12
SHAPES: list[tuple[str, tuple[int, ...]]] = [(name, (1, 1, 1)) for name in VERIFIERS]
SHAPES += [(name, (2, 2)) for name, build in VERIFIERS.items() if not build(RuleSettings()).needs_chain]


def ends(path: Path) -> bool:
    """Ends some drafts at once, some later, by what was drafted so far; the root is not among them."""
    return bool(path) and (sum(path) + len(path)) % 3 == 0


@pytest.mark.parametrize("ends_at_root", [False, True])
@pytest.mark.parametrize(
    ("verifier", "branching", "decide"),
    [
        ("token_rejection", (1, 1, 1), rejection_decisions),
        ("tree_rejection", (1, 1, 1), rejection_decisions),
        ("tree_rejection", (2, 1, 1), rejection_decisions),
        ("tree_rejection", (2, 2), rejection_decisions),
        ("block", (1, 1, 1), traversal_decisions),
        ("traversal", (1, 1, 1), traversal_decisions),
        ("traversal", (2, 1, 1), traversal_decisions),
        ("traversal", (2, 2), traversal_decisions),
    ],
)
def test_the_emitted_law_is_the_law_of_the_target(
    verifier: str, branching: tuple[int, ...], decide: Decide, ends_at_root: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab = 4 if max(branching) == 1 else 3
    probe = Probe(monkeypatch, VERIFIERS[verifier](RuleSettings()), f"mtad.verification.{verifier}")
    target, draft = random_law(1, vocab, 0.1), random_law(2, vocab, 0.1)
    trees = drafted_trees(
        target, draft, branching, has_replacement=False, ends=lambda path: ends(path) or (ends_at_root and not path)
    )
    law, length = emitted(probe, trees, branching, decide, target)
    assert largest_deviation(block_law(target, vocab, len(branching) + 1), law) < 1e-7
    assert length == pytest.approx(expected_length(trees, decide), abs=1e-7)
    assert (length == 0) == ends_at_root


def full_drafts(branching: tuple[int, ...]) -> Drafts:
    """Every draft of a draft law that resembles the target's, several times."""
    target, noise = random_law(1, 4), random_law(2, 4)

    def draft(path: Path) -> Array:
        return log_softmax(target(path) + 0.5 * noise(path))

    drafts = as_drafts(drafted_trees(target, draft, branching, has_replacement=False), branching)
    return drafts.take(list(range(len(drafts.weights))) * SEEDS)


def shorter(drafts: Drafts, depth: int) -> TokenTree:
    """The trees without their deeper levels."""
    tree = drafts.tree
    count = int((tree.depths[0] <= depth).sum())
    assert tree.draft_log_probs is not None
    assert tree.branching is not None
    return TokenTree(
        tokens=tree.tokens[:, :count],
        parents=tree.parents[:, :count],
        depths=tree.depths[:, :count],
        joint_draft_log_probs=tree.joint_draft_log_probs[:, :count],
        ancestors=tree.ancestors[:, :count],
        winner=torch.full_like(tree.winner, count - 1),
        valid=tree.valid[:, :count],
        carried=tree.carried[:, :count],
        draft_log_probs=tree.draft_log_probs[:, :count],
        branching=tree.branching[:depth],
        has_replacement=tree.has_replacement,
    )


def cut(tree: TokenTree, depths: torch.Tensor, rubbish: float) -> None:
    """Make the nodes below each row's depth absent."""
    assert tree.draft_log_probs is not None
    tree.valid &= tree.depths <= depths.unsqueeze(1)
    tree.joint_draft_log_probs.masked_fill_(~tree.valid, rubbish)
    tree.draft_log_probs.masked_fill_(~tree.valid.unsqueeze(-1), rubbish)


@pytest.mark.parametrize("rubbish", [-torch.inf, 0.0, -1.0])
@pytest.mark.parametrize(("verifier", "branching"), SHAPES)
def test_a_cut_draft_is_judged_as_the_shorter_draft(verifier: str, branching: tuple[int, ...], rubbish: float) -> None:
    rule = VERIFIERS[verifier](RuleSettings(fallback_threshold=0.0))
    drafts = full_drafts(branching)
    rows = seeded_controls(RowSettings(threshold=0.3), torch.arange(len(drafts.weights)))
    depths = rows.seeds % (len(branching) + 1)
    short = [shorter(drafts, depth) for depth in range(1, len(branching) + 1)]
    target = drafts.target_log_probs
    expected = [TargetOnly().accept(drafts.tree, target, rows)]
    expected += [rule.accept(tree, target[:, : 1 + tree.num_nodes], rows) for tree in short]
    cut(drafts.tree, depths, rubbish)
    actual = rule.accept(drafts.tree, target, rows)
    for depth, other in enumerate(expected):
        same = depths == depth
        for name in ("num_accepted", "next_tokens", "joint_log_ratio"):
            assert torch.equal(getattr(actual, name)[same], getattr(other, name)[same]), (name, depth)
        assert torch.equal(actual.path_nodes[same, :depth], other.path_nodes[same, :depth])
        assert other.num_accepted[same].amax() == (depth if verifier != "target_only" else 0)


@pytest.mark.parametrize("verifier", ["joint", "joint_own_path", "joint_expected"])
def test_no_depth_passes_that_the_winner_does_not_reach(verifier: str) -> None:
    drafts = full_drafts((2, 2))
    tree = drafts.tree
    tree.valid[:, -2:] = False
    tree.joint_draft_log_probs[:, -2:] = -torch.inf
    rows = seeded_controls(RowSettings(threshold=1e-9), torch.arange(len(drafts.weights)))
    accepted = VERIFIERS[verifier](RuleSettings()).accept(tree, drafts.target_log_probs, rows).num_accepted
    assert accepted.max() == (1 if verifier == "joint" else 2)
