"""A tree and the target's log-probabilities become an `Acceptance`: pure tensor functions, no model."""

from collections.abc import Callable

from mtad.verification.base import TargetOnly, Verifier
from mtad.verification.joint import JointVerifier
from mtad.verification.token_rejection import TokenRejectionVerifier

VERIFIERS: dict[str, Callable[[], Verifier]] = {
    "target_only": TargetOnly,
    "token_rejection": TokenRejectionVerifier,
    "joint": JointVerifier,
}

__all__ = ["VERIFIERS", "JointVerifier", "TargetOnly", "TokenRejectionVerifier", "Verifier"]
