"""What rules are built from."""

from dataclasses import dataclass, fields

from mtad.config import GenerationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """The dials of all rules; each field is the decoding option of the same name.

    A rule reads only its own. What differs from row to row, as tau does, comes with `RowControls` instead.
    """

    typical_epsilon: float = 0.09
    typical_delta: float = 0.3
    accept_single: float = 1.0
    accept_accumulated: float = 1.0
    fallback_threshold: float = 0.6
    rollback_threshold: float = 5.0

    @classmethod
    def from_options(cls, options: GenerationOptions) -> "RuleSettings":
        """Pick the rules' dials out of the decoding options."""
        return cls(**{item.name: getattr(options, item.name) for item in fields(cls)})
