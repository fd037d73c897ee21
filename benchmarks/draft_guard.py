"""Drafts that pay and drafts that do not, guarded and not, beside single tokens.

    python benchmarks/draft_guard.py --record benchmarks/records/draft_guard.json

The pair's own draft, the same with random weights, and the target as its own draft. All ways decode the same prompts
in turns, each repeat begins with another one. The last line on stdout is JSON.
"""

import argparse
import copy
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mtad import Engine, GenerationOptions
from mtad.api.contenders import in_turns
from mtad.models.transformers_runner import TransformersRunner
from mtad.results.files import write_json
from mtad.results.provenance import describe_run

PROMPTS = (
    "Give me advice for my first marathon.",
    "Explain gravity to a child.",
    "Write a short story about a lighthouse.",
)
ALONE = "single tokens"


def served(model: Any) -> TransformersRunner:
    """A model with tree attention."""
    runner = TransformersRunner(model)
    runner.attach()
    return runner


def engines(engine: Engine) -> dict[str, Engine]:
    """The engine and two like it, by the name of their draft."""
    draft, target = engine.models.draft, engine.models.target
    assert isinstance(draft, TransformersRunner)
    random = copy.deepcopy(draft.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in random.parameters():
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return {
        "the pair's draft": engine,
        "random weights": Engine(replace(engine.models, draft=served(random))),
        "the target itself": Engine(replace(engine.models, draft=served(copy.deepcopy(target.model)))),
    }


def measure(engine: Engine, repeats: int, max_new_tokens: int) -> dict[str, list[dict[str, Any]]]:
    """The statistics of every answer, by way."""
    base = GenerationOptions(seed=0, max_new_tokens=max_new_tokens, ignore_eos=True)
    ways = {ALONE: (engine, replace(base, method="autoregressive"))}
    for name, other in engines(engine).items():
        ways[f"{name}, guarded"] = other, replace(base, guard="on")
        ways[f"{name}, not guarded"] = other, base
    for other, options in ways.values():
        other.generate("Hello.", replace(options, max_new_tokens=8))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in in_turns([*ways], turn):
            chosen, options = ways[name]
            result = chosen.generate(PROMPTS[turn % len(PROMPTS)], replace(options, seed=turn))
            found[name].append(asdict(result.stats))
            print(f"{name}: {result.stats.tokens_per_s:.1f} tokens/s", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Drafts that pay and drafts that do not, guarded and not.")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    options = parser.parse_args()
    engine = Engine.from_pretrained(options.target, draft=options.draft, dtype=options.dtype)
    found = measure(engine, options.repeats, options.max_new_tokens)
    speeds = {name: [stats["tokens_per_s"] for stats in answers] for name, answers in found.items()}
    ratios = {
        name: statistics.median(here / there for here, there in zip(figures, speeds[ALONE], strict=True))
        for name, figures in speeds.items()
    }
    document = {
        "kind": "draft_guard",
        "run": describe_run(),
        "models": engine.settings_record(GenerationOptions())["models"],
        "threads": torch.get_num_threads(),
        "max_new_tokens": options.max_new_tokens,
        "answers": found,
        "speed_ratios": ratios,
    }
    if options.record is not None:
        write_json(options.record, document)
    print(json.dumps({"speed_ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
