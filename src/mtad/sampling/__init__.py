"""Logits become warped log-probabilities; counter-based draws."""

from mtad.sampling.draws import Stream, draw_categorical, draw_without_replacement, uniform
from mtad.sampling.warping import Candidates, upcast, warp_candidates, warp_logits

__all__ = [
    "Candidates",
    "Stream",
    "draw_categorical",
    "draw_without_replacement",
    "uniform",
    "upcast",
    "warp_candidates",
    "warp_logits",
]
