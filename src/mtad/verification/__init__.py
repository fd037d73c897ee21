"""A tree and the target's log-probabilities become an `Acceptance`: pure tensor functions, no model."""

from collections.abc import Callable

from mtad.verification.base import TargetOnly, Verifier
from mtad.verification.joint import JointVerifier
from mtad.verification.settings import RuleSettings
from mtad.verification.token_rejection import TokenRejectionVerifier

VERIFIERS: dict[str, Callable[[RuleSettings], Verifier]] = {
    "target_only": lambda settings: TargetOnly(),
    "token_rejection": lambda settings: TokenRejectionVerifier(),
    "joint": lambda settings: JointVerifier(),
}
"""Rules by name; `mtad.config.VERIFIER_NAMES` lists the same names."""

__all__ = ["VERIFIERS", "JointVerifier", "RuleSettings", "TargetOnly", "TokenRejectionVerifier", "Verifier"]
