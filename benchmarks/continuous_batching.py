"""What sessions are good for: throughput against one by one, gaps in streams, shared beginnings.

    python benchmarks/continuous_batching.py --record benchmarks/records/continuous_batching.json

All ways decode the same requests in turns, each repeat begins with another one. The last line on stdout is JSON.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from mtad import Engine, GenerationOptions
from mtad.api.contenders import in_turns
from mtad.results.files import write_json
from mtad.results.provenance import describe_run

PROMPTS = (
    "Give me advice for my first marathon.",
    "Write the first line of a novel.",
    "Why is the sky blue?",
    "Name three fruits.",
    "How do I boil an egg?",
    "Explain gravity to a child.",
    "What is a prime number?",
    "Tell me a joke about cats.",
)
LONG = " ".join(["The quick brown fox jumps over the lazy dog."] * 150)

Requests = list[tuple[str, GenerationOptions]]


def requests(method: str, max_new_tokens: int, count: int) -> Requests:
    """Short questions with seeds of their own."""
    return [
        (PROMPTS[seed % len(PROMPTS)], GenerationOptions(method=method, seed=seed, max_new_tokens=max_new_tokens))
        for seed in range(count)
    ]


def one_by_one(engine: Engine, asked: Requests) -> int:
    """Tokens of all answers, each decoded alone."""
    return sum(engine.generate(prompt, options).stats.num_tokens for prompt, options in asked)


def in_batches(engine: Engine, asked: Requests, size: int) -> int:
    """Tokens of all answers, a batch after the other; one seed for all, which a batch cannot differ in."""
    prompts = [prompt for prompt, _ in asked]
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    options = asked[0][1]
    return sum(result.stats.num_tokens for batch in batches for result in engine.generate(batch, options))


def in_session(engine: Engine, asked: Requests, rows: int) -> int:
    """Tokens of all answers of a session with so many rows."""
    with engine.session(max_rows=rows, max_tokens=1024) as session:
        for prompt, options in asked:
            session.submit(prompt, options)
        count = 0
        while session.num_waiting or session.num_running:
            count += sum(len(piece.token_ids) for piece in session.step())
        return count


def throughput(engine: Engine, repeats: int, count: int, max_new_tokens: int) -> dict[str, list[float]]:
    """Tokens per second of every way, one figure a repeat."""
    asked = requests("mmtad", max_new_tokens, count)
    mixed = [
        pair for pairs in zip(asked, requests("speculative", max_new_tokens, count), strict=True) for pair in pairs
    ]
    ways: dict[str, Callable[[], int]] = {
        "one by one": lambda: one_by_one(engine, asked),
        "batches of 8": lambda: in_batches(engine, asked, 8),
        **{f"session, {rows} rows": lambda rows=rows: in_session(engine, asked, rows) for rows in (1, 2, 4, 8, 16)},
        "session, 8 rows, two methods": lambda: in_session(engine, mixed[:count], 8),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in in_turns([*ways], turn):
            started = perf_counter()
            num_tokens = ways[name]()
            found[name].append(num_tokens / (perf_counter() - started))
            print(f"{name}: {found[name][-1]:.1f} tokens/s", file=sys.stderr, flush=True)
    return found


def gaps(engine: Engine, chunk: int) -> dict[str, float]:
    """Milliseconds of four streams' steps before and while a long prompt comes in, and until its first token."""
    with engine.session(max_rows=8, max_tokens=2048, prefill_chunk=chunk) as session:
        endless = GenerationOptions(seed=0, max_new_tokens=400, ignore_eos=True)
        for prompt in PROMPTS[:4]:
            session.submit(prompt, endless)
        usual = [_timed(session)[0] for _ in range(16)][6:]
        first = _until_first_token(session, LONG)
        again = _until_first_token(session, LONG + " Why?")
    return {
        "usual_ms": 1000 * statistics.median(usual),
        "longest_ms": 1000 * max(first),
        "first_token_ms": 1000 * sum(first),
        "first_token_again_ms": 1000 * sum(again),
    }


def _timed(session: Any) -> tuple[float, list[int]]:
    started = perf_counter()
    rows = [piece.row for piece in session.step()]
    return perf_counter() - started, rows


def _until_first_token(session: Any, prompt: str) -> list[float]:
    ticket = session.submit(prompt, GenerationOptions(seed=0, max_new_tokens=2, ignore_eos=True))
    steps = []
    while True:
        seconds, rows = _timed(session)
        steps.append(seconds)
        if ticket in rows:
            return steps


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Throughput, gaps and shared beginnings of sessions.")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    options = parser.parse_args()
    engine = Engine.from_pretrained(options.target, draft=options.draft, dtype=options.dtype, device=options.device)
    engine.generate("Hello.", max_new_tokens=8)
    found = throughput(engine, options.repeats, options.requests, options.max_new_tokens)
    alone = found["one by one"]
    ratios = {
        name: statistics.median(here / there for here, there in zip(figures, alone, strict=True))
        for name, figures in found.items()
    }
    document = {
        "kind": "continuous_batching",
        "run": describe_run(),
        "models": engine.settings_record(GenerationOptions())["models"],
        "requests": options.requests,
        "max_new_tokens": options.max_new_tokens,
        "tokens_per_s": found,
        "speed_ratios": ratios,
        "gaps": {str(chunk): gaps(engine, chunk) for chunk in (64, 256, 4096)},
    }
    if options.record is not None:
        write_json(options.record, document)
    print(json.dumps({"speed_ratios": ratios, "gaps": document["gaps"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
