"""Compares ways to train a draft at equal cost: losses, and whether the draft's own beams are part of the lesson.

    mtad distill --target TARGET --out DRAFT --size nano --prompts prompts.jsonl ...
    python benchmarks/draft_training.py --target TARGET --work DRAFT/.work --prompts prompts.jsonl

Every way gets the same seconds of processor time for the same sampled texts, seed and batches, so that a busy machine
changes nothing but the wait. Tokens per call are those of answers to prompts that were not trained on.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtad.config import DistillOptions, ModelOptions
from mtad.distill.beginnings import begin_draft
from mtad.distill.evaluation import tokens_per_call
from mtad.distill.lessons import Classroom, measure_overlap
from mtad.distill.sampling import read_source
from mtad.distill.shapes import DraftShape
from mtad.distill.store import open_texts
from mtad.distill.teacher import Teacher, use_own_attention
from mtad.distill.training import Trainer
from mtad.distill.work import WorkFolder
from mtad.models.loading import LoadedModels, load_models
from mtad.results.provenance import describe_run

WAYS: dict[str, dict[str, Any]] = {
    "on with kl": {"loss": "kl", "learning_rate": 5e-4},
    "on with kl, own beams": {"loss": "kl", "learning_rate": 5e-4, "on_policy": 0.5},
    "kl": {"loss": "kl"},
    "kl, own beams": {"loss": "kl", "on_policy": 0.5},
    "acceptance": {"loss": "acceptance"},
    "tv": {"loss": "tv"},
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", required=True)
    parser.add_argument("--work", type=Path, required=True, help="a .work folder with sampled texts")
    parser.add_argument("--prompts", type=Path, required=True, help="the last ones are answered for the figures")
    parser.add_argument("--init", help="a draft to go on with, for the ways that do")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--seconds", type=float, default=100.0, help="processor time of every training")
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("draft_training.json"))
    options = parser.parse_args()
    models = load_models(ModelOptions(target=options.target, device="cpu"), wants_draft=False)
    prompts = [json.loads(line)["prompt"] for line in options.prompts.read_text().splitlines()[-4 * options.answers :]]
    rows: dict[str, Any] = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    record = {"run": describe_run(), "seconds": options.seconds, "answers": options.answers, "rows": rows}
    for name in options.ways:
        changes = WAYS[name]
        if name in rows or (name.startswith("on with") and options.init is None):
            continue
        init = options.init if name.startswith("on with") else "pca"
        rows[name] = train(models, options, prompts, DistillOptions(**({"batch_tokens": 1024, "init": init} | changes)))
        print(name, json.dumps(rows[name]), flush=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def train(models: LoadedModels, options: Any, prompts: list[str], way: DistillOptions) -> dict[str, Any]:
    """One way: overlap and tokens per call before and after, and what was seen."""
    texts = open_texts(WorkFolder(options.work.parent), models.target.vocab_size)
    numbers, held_out = texts.split()
    given = list(read_source(models, prompts, way).given)[: options.answers]
    use_own_attention(models.target.model)
    draft = begin_draft(DraftShape.parse(options.size), models.target.model, way.init, 0)
    ends = sorted(models.defaults.eos_token_ids)
    classroom = Classroom(Teacher(models.target.model, models.target.vocab_size), [draft], way.loss, eos_token_ids=ends)
    scratch = WorkFolder(options.out.with_suffix(""))
    shutil.rmtree(scratch.path, ignore_errors=True)
    scratch.open({})
    found = {"before": {"overlap": measure_overlap(classroom, texts, held_out)[0]}}
    trainer = Trainer(classroom, replace(way, epochs=1000), scratch, clock=time.process_time)
    trainer.run(texts, numbers, options.seconds, lambda *_: None)
    found["after"] = {"overlap": measure_overlap(classroom, texts, held_out)[0]}
    models.target.attach()
    found["after"] |= tokens_per_call(models, draft, given, count=options.answers, labels=("mmtad", "speculative"))
    return found | {"batches": trainer.state["batches"], "tokens": trainer.state["tokens"]}


if __name__ == "__main__":
    main()
