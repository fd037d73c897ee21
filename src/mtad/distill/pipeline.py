"""The stages of one run: sample, train, evaluate, write; each goes on where a killed run stopped."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mtad.api import Prompt
from mtad.config import DistillOptions, ModelOptions
from mtad.distill.batches import choose_batches
from mtad.distill.beginnings import begin_draft, check_beginning
from mtad.distill.cost_model import choose_size
from mtad.distill.evaluation import tokens_per_call
from mtad.distill.lessons import Classroom, measure_overlap
from mtad.distill.reporting import card_fields, find_rates
from mtad.distill.sampling import Note, read_source, sample_texts
from mtad.distill.shapes import DraftShape
from mtad.distill.store import StoredTexts, TextStore, open_texts
from mtad.distill.teacher import Teacher, use_own_attention
from mtad.distill.team import Team
from mtad.distill.training import EVALUATION_SHARE, Trainer
from mtad.distill.vocabulary import check_drafts, find_vocabulary
from mtad.distill.work import WorkFolder, training_memory_errors
from mtad.distill.writing import write_draft
from mtad.errors import DistillError
from mtad.models.intersection import VocabularyMap
from mtad.models.loading import LoadedModels, load_models, load_stock_models
from mtad.results.provenance import describe_run

FREE_SETTINGS = ("learning_rate",)
"""May change when a run is gone on with."""


class Distillation:
    """One run into one folder.

    Args:
        models: Which target, and where it runs.
        options: Sizes, text, loss, time.
        prompts: The user's prompts; without any the target writes its own.
        output: Folder of the draft; with several sizes each has a folder of its own in it.
        note: Told about progress.
        team: The processes that share the work.

    Raises:
        ModelLoadError: The target cannot be loaded.
        DistillError: The folder holds a run with other settings, or no such drafts can be made.
    """

    def __init__(
        self,
        models: ModelOptions,
        options: DistillOptions,
        prompts: Sequence[Prompt],
        output: Path,
        note: Note,
        team: Team | None = None,
    ) -> None:
        self.team, self.output = team or Team(), output
        self.note = note if self.team.leads else _say_nothing
        self.work = WorkFolder(output)
        self.team.lead(lambda: self.work.open(_fingerprint(models, options, prompts)))
        if models.device == "auto" and self.team.device is not None:
            models = replace(models, device=self.team.device)
        self.models: LoadedModels = load_models(models, wants_draft=False)
        self.vocabulary: VocabularyMap | None = None
        self.options = self._with_batches(self._with_sizes(options))
        self.prompts = prompts
        self.shapes = [DraftShape.parse(name) for name in self.options.size]
        vocabulary = check_drafts(self.models, self.shapes, self.options)
        for shape in self.shapes:
            check_beginning(shape, self.models.target.model, self.options.init_for(shape.name), vocabulary)

    def run(self) -> dict[str, Any]:
        """All stages that are not done yet; returns the report, ready for JSON, in the leading process alone."""
        texts = self._sample()
        self.vocabulary = find_vocabulary(self.models, texts, self.options)
        drafts = self._train(texts)
        self.team.leave()
        if not self.team.leads:
            return {}
        report = self._evaluate(texts, drafts)
        for shape, draft in zip(self.shapes, drafts, strict=True):
            self.note("write", 0.0, shape.name)
            card = card_fields(report, shape, draft, self.models, self.vocabulary, len(self.prompts))
            write_draft(self._folder(shape), self.work, draft, self.models, card, self.vocabulary)
        self.note("write", 1.0, "")
        self.work.write("report", report)
        return report

    def _with_sizes(self, options: DistillOptions) -> DistillOptions:
        """The options with `auto` replaced by what the cost model chose, once per run."""
        if "auto" not in options.size:
            return options
        chosen = self.team.lead(lambda: self._choose(options))
        names = dict.fromkeys(chosen["chosen"] if name == "auto" else name for name in options.size)
        return replace(options, size=tuple(names))

    def _choose(self, options: DistillOptions) -> dict[str, Any]:
        chosen = self.work.read("sizes")
        if not chosen:
            name, predicted = choose_size(self.models, options)
            chosen = {"chosen": name, "predicted_speedup": predicted}
            self.work.write("sizes", chosen)
        return chosen

    def _with_batches(self, options: DistillOptions) -> DistillOptions:
        """The options with the sizes of batches that suit the target's device, once per run."""
        return replace(options, **self.team.lead(lambda: self._choose_batches(options)))

    def _choose_batches(self, options: DistillOptions) -> dict[str, Any]:
        chosen = self.work.read("batches")
        if not chosen:
            chosen = choose_batches(self.models.target, options)
            self.work.write("batches", chosen)
        return chosen

    def _sample(self) -> StoredTexts:
        store = TextStore(self.work, self.models.target.vocab_size) if self.team.leads else None
        if not self.team.lead(lambda: self.work.read("sample").get("is_finished", False)):
            source = read_source(self.models, self.prompts, self.options)
            sample_texts(self.models, source, store, self.options, self.note, self.team)
        texts = open_texts(self.work, self.models.target.vocab_size)
        if len(texts) < 2:
            raise DistillError(f"got {len(texts)} sampled texts, expected at least 2; raise --tokens or --time-budget")
        return texts

    def _begin(self) -> list[Any]:
        """The untrained drafts; the same ones every time."""
        target = self.models.target.model
        if self.options.init == "layers":
            target = load_stock_models(self.models.options)[0]
        return [
            begin_draft(
                shape,
                target,
                self.options.init_for(shape.name),
                self.options.seed,
                vocabulary=self.vocabulary,
                head_rank=self.options.head_rank,
            )
            for shape in self.shapes
        ]

    def _train(self, texts: StoredTexts) -> list[Any]:
        use_own_attention(self.models.target.model)
        teacher = Teacher(self.models.target.model, self.models.target.vocab_size)
        drafts = self._begin()
        ends = sorted(self.models.defaults.eos_token_ids)
        classroom = Classroom(teacher, drafts, self.options.loss, vocabulary=self.vocabulary, eos_token_ids=ends)
        numbers, held_out = texts.split()
        with training_memory_errors():
            self.team.lead(lambda: self._measure("before", classroom, texts, held_out))
            trainer = Trainer(classroom, self.options, self.work, team=self.team)
            trainer.run(texts, numbers, self._training_seconds(), self.note)
            self.team.lead(lambda: self._measure("after", classroom, texts, held_out))
        return drafts

    def _measure(self, when: str, classroom: Classroom, texts: StoredTexts, held_out: list[int]) -> None:
        if not self.work.read(when):
            self.work.write(when, {"overlaps": measure_overlap(classroom, texts, held_out)})

    def _training_seconds(self) -> float | None:
        if self.options.budget_s is None:
            return None
        left = self.options.budget_s * (1 - EVALUATION_SHARE) - self.work.read("sample")["seconds"]
        return float(max(left, 0.1 * self.options.budget_s))

    def _evaluate(self, texts: StoredTexts, drafts: list[Any]) -> dict[str, Any]:
        self.models.target.attach()
        prompts = [texts.prompt(number) for number in texts.split()[1]]
        figures = self.work.read("evaluate")
        untrained = self._begin()
        for place, shape in enumerate(self.shapes):
            for stage, draft in (("before", untrained[place]), ("after", drafts[place])):
                key = f"{shape.name} {stage}"
                self.note("evaluate", len(figures) / (2 * len(self.shapes)), key)
                if key not in figures:
                    overlap = self.work.read(stage)["overlaps"][place]
                    figures[key] = {"overlap": overlap} | tokens_per_call(self.models, draft, prompts, self.vocabulary)
                    self.work.write("evaluate", figures)
        self.note("evaluate", 1.0, "")
        return {
            "target": asdict(self.models.options),
            "options": asdict(self.options),
            "sizes": self.work.read("sizes") or None,
            "run": describe_run(),
            "sample": self.work.read("sample"),
            "train": self.work.read("train"),
            "rates": find_rates(self.work.read("sample"), self.work.read("train")),
            "drafts": {
                shape.name: {
                    "folder": str(self._folder(shape)),
                    "parameters": sum(weight.numel() for weight in drafts[place].parameters()),
                    "before": figures[f"{shape.name} before"],
                    "after": figures[f"{shape.name} after"],
                }
                for place, shape in enumerate(self.shapes)
            },
        }

    def _folder(self, shape: DraftShape) -> Path:
        return self.output if len(self.shapes) == 1 else self.output / shape.name


def _say_nothing(stage: str, done: float, words: str) -> None:
    """Takes no note, in processes that do not lead."""


def _fingerprint(models: ModelOptions, options: DistillOptions, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What must be alike for a run to be gone on with, ready for JSON."""
    chosen = {name: value for name, value in asdict(options).items() if name not in FREE_SETTINGS}
    chosen |= {name: getattr(models, name) for name in ("target", "adapter", "dtype", "revision")}
    digest = hashlib.sha256(json.dumps(list(prompts), default=str).encode()).hexdigest()[:16] if prompts else None
    fingerprint: dict[str, Any] = json.loads(json.dumps(chosen | {"prompts": digest}))
    return fingerprint
