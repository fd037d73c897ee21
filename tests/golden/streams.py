"""Tokens that every method emits on a fixed table model with fixed seeds.

They change when a random stream, a rule or an order of candidates changes. When that is meant, write them anew with

    python -m tests.golden.streams

from the root of the repository, and say in the commit why every change in `streams.json` is right.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from tests.table_models import ALL_METHODS, Run

from mtad.structures import RowSettings

STREAMS_FILE = Path(__file__).with_name("streams.json")
VOCAB, EOS = 7, 6
PROMPTS = [[1], [3, 0, 5], [2, 2]]
SETTINGS = [
    RowSettings(seed=0),
    RowSettings(seed=1, temperature=0.7, top_k=4, threshold=0.2),
    RowSettings(seed=2**40, temperature=1.3, top_p=0.9, threshold=0.8),
]


def fixed_table(phase: float) -> torch.Tensor:
    """Logits from a formula, so that they do not depend on any library's random numbers."""
    entries = [3 * math.sin(phase + 1.7 * index * index) for index in range(VOCAB**3)]
    table = torch.tensor(entries, dtype=torch.float64).view(VOCAB, VOCAB, VOCAB)
    table[..., EOS] -= 3
    return table


def cases() -> dict[str, dict[str, Any]]:
    """Options by name."""
    found: dict[str, dict[str, Any]] = {}
    for method in ALL_METHODS:
        draws = ("top",) if method in ("autoregressive", "speculative") else ("top", "gumbel", "sample")
        for draw in draws:
            found[f"{method} {draw}"] = {"method": method, "draw": draw, "gamma": 3, "beam_width": 3}
    return found


def stream(options: dict[str, Any], *, is_greedy: bool) -> list[list[int]]:
    """Tokens of every prompt."""
    run = Run(fixed_table(0.3), fixed_table(0.5), options, frozenset({EOS}), temperature=0.0 if is_greedy else 1.0)
    greedy = [RowSettings(seed=setting.seed, temperature=0, threshold=setting.threshold) for setting in SETTINGS]
    results = run.generate(PROMPTS, greedy if is_greedy else SETTINGS, [24] * len(PROMPTS))
    return [list(result.token_ids) for result in results]


def all_streams() -> dict[str, list[list[int]]]:
    """Tokens by case, sampled and greedy."""
    streams = {}
    for name, options in cases().items():
        streams[name] = stream(options, is_greedy=False)
        streams[f"{name} greedy"] = stream(options, is_greedy=True)
    return streams


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(tokens)}" for name, tokens in all_streams().items()]
    STREAMS_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
