"""Committed state becomes a `TokenTree`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mtad.drafting.base import Drafter, NoDrafter
from mtad.drafting.beam import BeamDrafter, assemble_tree
from mtad.drafting.beams import Beams, BeamSampler, Draw, unwarped_steps
from mtad.drafting.branching_tree import BranchingTreeDrafter
from mtad.drafting.chain import ChainDrafter, chain_tree
from mtad.drafting.dynamic_tree import DynamicTreeDrafter
from mtad.drafting.forest import BeamFront, Forest, ForestDrafter, ForestLevel, logits_of_roots, repeat_tree
from mtad.drafting.limits import limit_tree
from mtad.drafting.prompt_lookup import PromptLookupDrafter
from mtad.models.runner import ModelRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShape:
    """What a drafter is built from; each reads its own part.

    Attributes:
        gamma: Depth of chains, beams and dynamic trees.
        beam_width: Beams, or nodes that a dynamic tree expands per depth.
        draw: How beams are drawn.
        eos_token_ids: Tokens that end a beam, `[count]` int64; drafts live on their device.
        vocab_size: Width of the distributions of a drafter without a model.
        branching: Children of every node of a branching tree by depth, root first.
        has_replacement: Whether a branching tree draws siblings with replacement.
        node_budget: Nodes a dynamic tree keeps.
        lookup_ngram: Longest match that prompt lookup looks for.
    """

    gamma: int
    beam_width: int
    draw: Draw
    eos_token_ids: Tensor
    vocab_size: int
    branching: tuple[int, ...] = (4, 2, 2)
    has_replacement: bool = False
    node_budget: int = 16
    lookup_ngram: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterEntry:
    """A row of `DRAFTERS`.

    Attributes:
        build: Makes the drafter from the auxiliary model's runner and a shape.
        needs_model: Whether an auxiliary model is needed.
        gives_distributions: Whether its trees carry `draft_log_probs` that the tokens were drawn from.
        gives_chain: Whether its trees are single paths.
        summary: One line for help and docs.
        exits_early: Whether the auxiliary model is the target's own first layers, no draft model being needed.
        shrinks: Whether it makes shallower trees, of fewer nodes, where no row drafts deeper.
    """

    build: Callable[[ModelRunner | None, DraftShape], Drafter]
    needs_model: bool
    gives_distributions: bool
    gives_chain: bool
    summary: str
    exits_early: bool = False
    shrinks: bool = False


def _beam(keep_tree: bool) -> Callable[[ModelRunner | None, DraftShape], Drafter]:
    def build(runner: ModelRunner | None, shape: DraftShape) -> Drafter:
        assert runner is not None
        sampler = BeamSampler(width=shape.beam_width, draw=shape.draw, eos_token_ids=shape.eos_token_ids)
        return BeamDrafter(runner, shape.gamma, sampler, keep_tree=keep_tree)

    return build


def _chain(runner: ModelRunner | None, shape: DraftShape) -> Drafter:
    assert runner is not None
    return ChainDrafter(runner, shape.gamma)


def _branching_tree(runner: ModelRunner | None, shape: DraftShape) -> Drafter:
    assert runner is not None
    return BranchingTreeDrafter(runner, shape.branching, with_replacement=shape.has_replacement)


def _dynamic_tree(runner: ModelRunner | None, shape: DraftShape) -> Drafter:
    assert runner is not None
    return DynamicTreeDrafter(runner, shape.gamma, shape.beam_width, shape.node_budget, shape.eos_token_ids)


def _prompt_lookup(runner: ModelRunner | None, shape: DraftShape) -> Drafter:
    return PromptLookupDrafter(shape.gamma, shape.lookup_ngram, shape.vocab_size, shape.eos_token_ids.device)


DRAFTERS: dict[str, DrafterEntry] = {
    "none": DrafterEntry(
        build=lambda runner, shape: NoDrafter(),
        needs_model=False,
        gives_distributions=True,
        gives_chain=True,
        summary="no draft: the target alone",
    ),
    "chain": DrafterEntry(
        build=_chain,
        needs_model=True,
        gives_distributions=True,
        gives_chain=True,
        summary="one sequence sampled token by token",
        shrinks=True,
    ),
    "beam": DrafterEntry(
        build=_beam(keep_tree=False),
        needs_model=True,
        gives_distributions=False,
        gives_chain=True,
        summary="the winner of a beam sampling",
        shrinks=True,
    ),
    "beam_tree": DrafterEntry(
        build=_beam(keep_tree=True),
        needs_model=True,
        gives_distributions=False,
        gives_chain=False,
        summary="all beams of a beam sampling as one tree",
        shrinks=True,
    ),
    "branching_tree": DrafterEntry(
        build=_branching_tree,
        needs_model=True,
        gives_distributions=True,
        gives_chain=False,
        summary="the same number of sampled children for every node of a depth",
    ),
    "dynamic_tree": DrafterEntry(
        build=_dynamic_tree,
        needs_model=True,
        gives_distributions=False,
        gives_chain=False,
        summary="the most probable nodes, grown where the draft is sure of itself",
    ),
    "prompt_lookup": DrafterEntry(
        build=_prompt_lookup,
        needs_model=False,
        gives_distributions=True,
        gives_chain=True,
        summary="what followed the last tokens when they stood in the text before",
        shrinks=True,
    ),
    "early_exit": DrafterEntry(
        build=_chain,
        needs_model=True,
        gives_distributions=True,
        gives_chain=True,
        summary="one sequence sampled from the target's own first layers",
        exits_early=True,
        shrinks=True,
    ),
}

__all__ = [
    "DRAFTERS",
    "BeamDrafter",
    "BeamFront",
    "BeamSampler",
    "Beams",
    "BranchingTreeDrafter",
    "ChainDrafter",
    "DraftShape",
    "Drafter",
    "DrafterEntry",
    "DynamicTreeDrafter",
    "Forest",
    "ForestDrafter",
    "ForestLevel",
    "NoDrafter",
    "PromptLookupDrafter",
    "assemble_tree",
    "chain_tree",
    "limit_tree",
    "logits_of_roots",
    "repeat_tree",
    "unwarped_steps",
]
