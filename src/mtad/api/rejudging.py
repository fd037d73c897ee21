"""Traces judged again, for rooms that reach decoding through the engine."""

from collections.abc import Sequence
from pathlib import Path

from mtad.decoding.replay import Judge, Judgement, replay_trace
from mtad.results.trace_reader import TraceReader


def judge_again(trace: Path, thresholds: Sequence[float]) -> list[Judgement]:
    """What the recorded rule would have done at other thresholds, without a model.

    Args:
        trace: A trace file.
        thresholds: Each gives one judgement, in this order.

    Raises:
        TraceError: The trace cannot be read.
    """
    reader = TraceReader(trace)
    judges = [Judge(rule=reader.facts.verifier, threshold=threshold) for threshold in thresholds]
    return list(replay_trace(reader, judges).judgements)
