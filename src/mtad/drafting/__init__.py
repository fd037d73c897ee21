"""Committed state becomes a `TokenTree`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mtad.drafting.base import Drafter, NoDrafter
from mtad.drafting.beam import BeamDrafter, assemble_tree, winner_path
from mtad.drafting.beams import Beams, BeamSampler, Draw
from mtad.drafting.chain import ChainDrafter, chain_tree
from mtad.models.runner import ModelRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShape:
    """What a drafter is built from: depth, width, draw mode and the tokens that end a beam."""

    gamma: int
    beam_width: int
    draw: Draw
    eos_token_ids: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterEntry:
    """A row of `DRAFTERS`.

    Attributes:
        build: Makes the drafter from the auxiliary model's runner and a shape.
        needs_model: Whether an auxiliary model is needed.
        gives_distributions: Whether its trees carry `draft_log_probs` that the tokens were drawn from.
        gives_chain: Whether its trees are single paths.
        summary: One line for help and docs.
    """

    build: Callable[[ModelRunner | None, DraftShape], Drafter]
    needs_model: bool
    gives_distributions: bool
    gives_chain: bool
    summary: str


def _beam(keep_tree: bool) -> Callable[[ModelRunner | None, DraftShape], Drafter]:
    def build(runner: ModelRunner | None, shape: DraftShape) -> Drafter:
        assert runner is not None
        sampler = BeamSampler(width=shape.beam_width, draw=shape.draw, eos_token_ids=shape.eos_token_ids)
        return BeamDrafter(runner, shape.gamma, sampler, keep_tree=keep_tree)

    return build


def _chain(runner: ModelRunner | None, shape: DraftShape) -> Drafter:
    assert runner is not None
    return ChainDrafter(runner, shape.gamma)


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
    ),
    "beam": DrafterEntry(
        build=_beam(keep_tree=False),
        needs_model=True,
        gives_distributions=False,
        gives_chain=True,
        summary="the winner of a beam sampling",
    ),
    "beam_tree": DrafterEntry(
        build=_beam(keep_tree=True),
        needs_model=True,
        gives_distributions=False,
        gives_chain=False,
        summary="all beams of a beam sampling as one tree",
    ),
}

__all__ = [
    "DRAFTERS",
    "BeamDrafter",
    "BeamSampler",
    "Beams",
    "ChainDrafter",
    "DraftShape",
    "Drafter",
    "DrafterEntry",
    "NoDrafter",
    "assemble_tree",
    "chain_tree",
    "winner_path",
]
