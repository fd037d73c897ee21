"""A tree and the target's log-probabilities become an `Acceptance`: pure tensor functions, no model."""

from collections.abc import Callable

from mtad.verification.base import TargetOnly, Verifier
from mtad.verification.beam_layer import BeamLayer, BeamLayerVerifier
from mtad.verification.big_little import BigLittleVerifier
from mtad.verification.block import BlockVerifier
from mtad.verification.exact_match import ExactMatchVerifier
from mtad.verification.joint import JointVerifier
from mtad.verification.joint_expected import JointExpectedVerifier
from mtad.verification.joint_own_path import JointOwnPathVerifier
from mtad.verification.settings import RuleSettings
from mtad.verification.strict_spans import StrictSpanVerifier
from mtad.verification.threshold import ThresholdVerifier
from mtad.verification.token_rejection import TokenRejectionVerifier
from mtad.verification.traversal import TraversalVerifier
from mtad.verification.tree_rejection import TreeRejectionVerifier
from mtad.verification.typical import TypicalVerifier

VERIFIERS: dict[str, Callable[[RuleSettings], Verifier]] = {
    "target_only": lambda settings: TargetOnly(),
    "exact_match": lambda settings: ExactMatchVerifier(),
    "token_rejection": lambda settings: TokenRejectionVerifier(),
    "block": lambda settings: BlockVerifier(),
    "tree_rejection": lambda settings: TreeRejectionVerifier(),
    "traversal": lambda settings: TraversalVerifier(),
    "joint": lambda settings: JointVerifier(),
    "joint_own_path": lambda settings: JointOwnPathVerifier(),
    "joint_expected": lambda settings: JointExpectedVerifier(),
    "typical": lambda settings: TypicalVerifier(settings.typical_epsilon, settings.typical_delta),
    "threshold": lambda settings: ThresholdVerifier(settings.accept_single, settings.accept_accumulated),
    "big_little": lambda settings: BigLittleVerifier(settings.fallback_threshold, settings.rollback_threshold),
}
"""Rules by name; `mtad.config.VERIFIER_NAMES` lists the same names."""

__all__ = [
    "VERIFIERS",
    "BeamLayer",
    "BeamLayerVerifier",
    "BigLittleVerifier",
    "BlockVerifier",
    "ExactMatchVerifier",
    "JointExpectedVerifier",
    "JointOwnPathVerifier",
    "JointVerifier",
    "RuleSettings",
    "StrictSpanVerifier",
    "TargetOnly",
    "ThresholdVerifier",
    "TokenRejectionVerifier",
    "TraversalVerifier",
    "TreeRejectionVerifier",
    "TypicalVerifier",
    "Verifier",
]
