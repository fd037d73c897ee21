"""Compares ways to train a draft at equal cost: losses, and whether the draft's own beams are part of the lesson.

    python benchmarks/draft_training.py --target TARGET --work DRAFT/.work --out draft_training.json

The target is a small model, cut to its most frequent tokens so that the comparison takes minutes on a CPU; prompts and
frequencies are those of a run of `mtad distill`. Every way gets the same seconds of processor time for the same sampled
texts, seed and batches, so that a busy machine changes nothing but the wait. Tokens per call are those of answers to
prompts that were not trained on. What the file holds already is not run again.
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
from mtad.distill.sampling import PromptSource, sample_texts
from mtad.distill.shapes import DraftShape
from mtad.distill.store import StoredTexts, TextStore, open_texts
from mtad.distill.teacher import Teacher, use_own_attention
from mtad.distill.training import Trainer
from mtad.distill.vocabulary import choose_vocabulary, serve_student
from mtad.distill.work import WorkFolder
from mtad.models.intersection import VocabularyMap
from mtad.models.loading import LoadedModels, SamplingDefaults, load_models
from mtad.results.provenance import describe_run

WAYS: dict[str, dict[str, Any]] = {
    "kl": {},
    "kl, own beams at the end (0.3)": {"on_policy": 0.3},
    "kl, own beams (1.0)": {"on_policy": 1.0},
    "tv": {"loss": "tv"},
    "acceptance": {"loss": "acceptance"},
    "acceptance, own beams at the end (0.3)": {"loss": "acceptance", "on_policy": 0.3},
}
METHODS = ("mmtad", "speculative")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", required=True, help="folder of a Llama-like model with its tokenizer")
    parser.add_argument("--work", type=Path, required=True, help="a .work folder with sampled texts")
    parser.add_argument("--size", default="64x1", help="of the draft")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens of target and draft")
    parser.add_argument("--tokens", type=int, default=40_000, help="sampled tokens")
    parser.add_argument("--seconds", type=float, default=30.0, help="processor time of every training")
    parser.add_argument("--answers", type=int, default=64, help="of 64 tokens, for the figures")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of every way")
    parser.add_argument("--out", type=Path, default=Path("draft_training.json"))
    options = parser.parse_args()
    record = json.loads(options.out.read_text()) if options.out.exists() else {"rows": {}}
    record |= {"run": describe_run(), "settings": {name: str(value) for name, value in vars(options).items()}}
    target, prompts = cut_target(options)
    store = WorkFolder(options.out.with_suffix(""))
    texts = sample(target, prompts[: -options.answers], store, options.tokens)
    for seed in range(options.seeds):
        for name, changes in WAYS.items():
            key = f"{name}, seed {seed}"
            if key not in record["rows"]:
                way = DistillOptions(batch_tokens=1024, epochs=1000, seed=seed, **changes)
                record["rows"][key] = train(target, options, (texts, prompts[-options.answers :]), way)
                print(key, json.dumps(record["rows"][key]), flush=True)
                options.out.write_text(json.dumps(record, indent=1) + "\n")


def cut_target(options: argparse.Namespace) -> tuple[LoadedModels, list[list[int]]]:
    """The target over a few tokens, and prompts in their ids."""
    models = load_models(ModelOptions(target=options.target, device="cpu", dtype="float32"), wants_draft=False)
    given = open_texts(WorkFolder(options.work.parent), models.target.vocab_size)
    vocabulary: VocabularyMap = choose_vocabulary(models, given, options.vocab)
    shape = DraftShape("small", 0, 0)
    cut = begin_draft(shape, models.target.model, options.target, 0, vocabulary=vocabulary).requires_grad_(False)
    ends = frozenset(int(vocabulary.draft_ids[token]) for token in models.defaults.eos_token_ids)
    defaults = SamplingDefaults(eos_token_ids=ends)
    prompts = [vocabulary.fed_ids[given.prompt(number)].tolist() for number in range(len(given))]
    return replace(models, target=serve_student(cut, options.vocab, None), defaults=defaults), prompts


def sample(target: LoadedModels, prompts: list[list[int]], work: WorkFolder, tokens: int) -> StoredTexts:
    """Answers of the cut target, sampled once."""
    work.open({"tokens": tokens})
    store = TextStore(work, target.target.vocab_size)
    options = DistillOptions(tokens=tokens, answer_tokens=96, self_written=0.0)
    sample_texts(target, PromptSource(prompts, prompts[0], None), store, options, lambda *_: None)
    return store.open()


def train(
    target: LoadedModels, options: argparse.Namespace, text: tuple[StoredTexts, list[list[int]]], way: DistillOptions
) -> dict[str, Any]:
    """One way: overlap and tokens per call, and what was seen."""
    texts, prompts = text
    numbers, held_out = texts.split()
    use_own_attention(target.target.model)
    draft = begin_draft(DraftShape.parse(options.size), target.target.model, "pca", way.seed)
    teacher = Teacher(target.target.model, options.vocab)
    classroom = Classroom(teacher, [draft], way.loss, eos_token_ids=sorted(target.defaults.eos_token_ids))
    scratch = WorkFolder(options.out.with_suffix("") / "training")
    shutil.rmtree(scratch.path, ignore_errors=True)
    scratch.open({})
    found: dict[str, Any] = {"overlap before": measure_overlap(classroom, texts, held_out)[0]}
    trainer = Trainer(classroom, way, scratch, clock=time.process_time)
    trainer.run(texts, numbers, options.seconds, lambda *_: None)
    found["overlap"] = measure_overlap(classroom, texts, held_out)[0]
    target.target.attach()
    found |= tokens_per_call(target, draft, prompts, count=options.answers, labels=METHODS)
    return found | {"batches": trainer.state["batches"], "tokens": trainer.state["tokens"]}


if __name__ == "__main__":
    main()
