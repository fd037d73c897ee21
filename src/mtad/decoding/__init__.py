"""Prefill, draft, score, verify, keep, stop."""

from mtad.decoding.answers import AnswerLimits, RunFacts
from mtad.decoding.decoder import Decoder
from mtad.decoding.draft_guard import Clock
from mtad.decoding.generation import Request, generate_pieces
from mtad.decoding.machine import Machine
from mtad.decoding.methods import (
    build_decoder,
    build_rule,
    check_rule_options,
    exit_layers,
    fitting_drafters,
    needs_draft_model,
    resolve_pair,
)
from mtad.decoding.recording import check_traceable, recording
from mtad.decoding.rolling_batch import RollingBatch, roll_requests
from mtad.decoding.rolling_shelf import BatchRoom, RollingShelf
from mtad.decoding.shelf import DecoderShelf

__all__ = [
    "AnswerLimits",
    "BatchRoom",
    "Clock",
    "Decoder",
    "DecoderShelf",
    "Machine",
    "Request",
    "RollingBatch",
    "RollingShelf",
    "RunFacts",
    "build_decoder",
    "build_rule",
    "check_rule_options",
    "check_traceable",
    "exit_layers",
    "fitting_drafters",
    "generate_pieces",
    "needs_draft_model",
    "recording",
    "resolve_pair",
    "roll_requests",
]
