"""How far a replay is from a run: traces taken at tau 0.5, judged at other thresholds, beside runs at those.

    python benchmarks/replay_distance.py --prompts FOLDER --record benchmarks/records/NAME.json

FOLDER holds `mt_bench/question.jsonl`. Evenly spaced questions of it are decoded at gamma 4, width 4, temperature 1,
top-k 10, top-p 0.9; of each trace the bytes are kept too, and of the run without one its seconds.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mtad import Engine, GenerationResult
from mtad.cli.prompt_files import read_prompts
from mtad.decoding.replay import Judge, replay_trace
from mtad.results.files import write_json
from mtad.results.provenance import describe_run
from mtad.results.trace_reader import TraceReader

METHODS = ("mmtad", "mtad")
RECORDED, OTHERS = 0.5, (0.1, 0.9)
SETTINGS: dict[str, Any] = {"gamma": 4, "beam_width": 4, "temperature": 1.0, "top_k": 10, "top_p": 0.9}


def main() -> int:
    """Run the command line."""
    options = _parse()
    questions = read_prompts(options.prompts / "mt_bench" / "question.jsonl")
    prompts = [questions[index * len(questions) // options.num_prompts] for index in range(options.num_prompts)]
    engine = Engine.from_pretrained("smollm2", dtype=options.dtype)
    settings = SETTINGS | {"max_new_tokens": options.max_new_tokens, "batch_size": options.batch_size, "seed": 1}
    record: dict[str, Any] = {"kind": "replay_distance", "schema": 1, "run": describe_run(), "rows": {}}
    record |= {"models": asdict(engine.models.options), "settings": settings | {"num_prompts": len(prompts)}}
    for method in tqdm(METHODS, unit="method"):
        record["rows"][method] = measure(engine, prompts, settings | {"method": method})
    write_json(options.record, record)
    for method, row in record["rows"].items():
        for tau, pair in row["thresholds"].items():
            apart = pair["replay"]["tokens_per_call"] / pair["run"]["tokens_per_call"] - 1
            print(
                f"{method} tau {tau}: replay {pair['replay']['tokens_per_call']:.2f}, run "
                f"{pair['run']['tokens_per_call']:.2f}, {apart:+.1%} apart, "
                f"{pair['replay']['on_policy_share']:.0%} of the steps on policy"
            )
    return 0


def measure(engine: Engine, prompts: list[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One traced run, judged again, and a run at every threshold."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "run.arrow"
        recorded = engine.generate(prompts, threshold=RECORDED, trace=trace, **settings)
        judges = [Judge(rule="joint", threshold=tau) for tau in (RECORDED, *OTHERS)]
        found = replay_trace(TraceReader(trace), judges)
        num_bytes = trace.stat().st_size
    runs = {RECORDED: recorded} | {tau: engine.generate(prompts, threshold=tau, **settings) for tau in OTHERS}
    return {
        "trace_bytes": num_bytes,
        "num_steps": found.num_steps,
        "num_tokens": sum(result.stats.num_tokens for result in recorded),
        "thresholds": {
            str(item.threshold): {"replay": asdict(item), "run": figures(runs[item.threshold])}
            for item in found.judgements
            if item.threshold is not None
        },
    }


def figures(results: list[GenerationResult]) -> dict[str, float]:
    """Token-weighted figures of a run."""
    log_probs = [value for result in results for value in result.log_probs]
    calls = sum(result.stats.target_calls for result in results)
    return {"tokens_per_call": len(log_probs) / calls, "log_prob_per_token": sum(log_probs) / len(log_probs)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How far a replay is from a run.")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with mt_bench")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num-prompts", type=int, default=40)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
