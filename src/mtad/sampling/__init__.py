"""Logits become warped log-probabilities; counter-based draws."""

from mtad.sampling.draws import (
    Stream,
    draw_ahead,
    draw_categorical,
    draw_without_replacement,
    uniform,
    uniform_along,
)
from mtad.sampling.warping import Candidates, upcast, warp_candidates, warp_logits

__all__ = [
    "Candidates",
    "Stream",
    "draw_ahead",
    "draw_categorical",
    "draw_without_replacement",
    "uniform",
    "uniform_along",
    "upcast",
    "warp_candidates",
    "warp_logits",
]
