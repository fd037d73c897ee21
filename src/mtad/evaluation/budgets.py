"""What a calibration may not give away, and who keeps to it."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from mtad.errors import ConfigError

_NUMBER = r"(\d+(?:\.\d+)?)"
_SCORE = re.compile(rf"score within {_NUMBER} ?%")
_ENERGY = re.compile(rf"energy ?<= ?(?:{_NUMBER} ?% ?of )?sampling")
_JOULES = re.compile(rf"joules ?<= ?{_NUMBER}")
KNOWN = (
    "perplexity<=sampling",
    "score within N%",
    "energy<=sampling",
    "energy<=N% of sampling",
    "joules<=N",
    "lossless",
    "max speed",
)
"""Budgets as they are spelled."""
Kind = Literal["perplexity", "score", "energy", "joules", "lossless", "speed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit on what a faster method may cost.

    Attributes:
        kind: `perplexity` (not above single-token sampling's), `score` (not below its by more than `limit`), `energy`
            (joules a token, not above `limit` of its), `joules` (the same, not above `limit`), `lossless` (a rule that
            keeps the target's law) or `speed` (no limit).
        text: As it was asked for.
        limit: Share of the baseline's score or joules, or joules a token.
    """

    kind: Kind
    text: str
    limit: float = 0.0

    @property
    def needs_meter(self) -> bool:
        """Whether joules must be counted."""
        return self.kind in ("energy", "joules")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a contender keeps to a budget: by its mean, and with its whole interval."""

    holds: bool
    is_confirmed: bool


def parse_budget(text: str) -> Budget:
    """A budget from its words.

    Raises:
        ConfigError: It is none of those known.
    """
    plain = " ".join(text.lower().split())
    if plain.replace(" ", "") == "perplexity<=sampling":
        return Budget(kind="perplexity", text=plain)
    if found := _SCORE.fullmatch(plain):
        return Budget(kind="score", text=plain, limit=float(found.group(1)) / 100)
    if found := _ENERGY.fullmatch(plain):
        return Budget(kind="energy", text=plain, limit=float(found.group(1) or 100) / 100)
    if found := _JOULES.fullmatch(plain):
        return Budget(kind="joules", text=plain, limit=float(found.group(1)))
    if plain == "lossless":
        return Budget(kind="lossless", text=plain)
    if plain == "max speed":
        return Budget(kind="speed", text=plain)
    known = ", ".join(map(repr, KNOWN[:-1]))
    raise ConfigError(f"budget must be {known} or {KNOWN[-1]!r}, got {text!r}")


def judge(budget: Budget, rows: list[dict[str, Any]], baseline: list[dict[str, Any]], *, is_lossless: bool) -> Verdict:
    """Whether a contender keeps to the budget on every task that says something about it.

    Args:
        budget: The limit.
        rows: The contender's rows, one a task, as JSON has them; for a budget of energy with `joules`.
        baseline: Those of single-token sampling.
        is_lossless: Whether the contender's rule keeps the target's law, which no sample can show.
    """
    if budget.needs_meter:
        figure = "ratio" if budget.kind == "energy" else "per_token"
        return _stay_below(budget.limit, [row["joules"][figure] for row in rows])
    if is_lossless or budget.kind in ("lossless", "speed"):
        is_kept = is_lossless or budget.kind == "speed"
        return Verdict(is_kept, is_kept)
    if budget.kind == "perplexity":
        return _stay_below(0, [row["decoding"]["perplexity_change"] for row in rows])
    allowed = {row["task"]: -budget.limit * row["score"]["value"] for row in baseline if row["score"] is not None}
    pairs = [(row["score_change"], allowed[row["task"]]) for row in rows if row["task"] in allowed]
    if not pairs:
        raise ConfigError("a budget on scores needs a task with scores; name another task, or a budget on perplexity")
    return Verdict(
        all(change["value"] >= limit for change, limit in pairs), all(change["low"] >= limit for change, limit in pairs)
    )


def _stay_below(limit: float, estimates: list[dict[str, float]]) -> Verdict:
    return Verdict(
        all(estimate["value"] <= limit for estimate in estimates),
        all(estimate["high"] <= limit for estimate in estimates),
    )
