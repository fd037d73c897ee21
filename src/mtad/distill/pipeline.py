"""The stages of one run: sample, train, evaluate, write; each goes on where a killed run stopped."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mtad.api import Prompt
from mtad.config import DistillOptions, ModelOptions
from mtad.distill.beginnings import begin_draft
from mtad.distill.cost_model import choose_size
from mtad.distill.evaluation import tokens_per_call
from mtad.distill.sampling import TEMPERATURES, Note, read_source, sample_texts
from mtad.distill.shapes import DraftShape
from mtad.distill.store import StoredTexts, TextStore
from mtad.distill.teacher import Teacher, use_own_attention
from mtad.distill.training import EVALUATION_SHARE, Trainer, measure_overlap
from mtad.distill.work import WorkFolder, training_memory_errors
from mtad.distill.writing import write_draft
from mtad.errors import DistillError
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

    Raises:
        ModelLoadError: The target cannot be loaded.
        DistillError: The folder holds a run with other settings.
    """

    def __init__(
        self, models: ModelOptions, options: DistillOptions, prompts: Sequence[Prompt], output: Path, note: Note
    ) -> None:
        self.note, self.output = note, output
        self.work = WorkFolder(output)
        self.work.open(_fingerprint(models, options, prompts))
        self.models: LoadedModels = load_models(models, wants_draft=False)
        self.options = self._with_sizes(options)
        self.prompts = prompts
        self.shapes = [DraftShape.parse(name) for name in self.options.size]

    def run(self) -> dict[str, Any]:
        """All stages that are not done yet; returns the report, ready for JSON."""
        texts = self._sample()
        drafts = self._train(texts)
        report = self._evaluate(texts, drafts)
        for shape, draft in zip(self.shapes, drafts, strict=True):
            self.note("write", 0.0, shape.name)
            write_draft(self._folder(shape), self.work, draft, self.models, self._card(shape, draft, report))
        self.note("write", 1.0, "")
        self.work.write("report", report)
        return report

    def _with_sizes(self, options: DistillOptions) -> DistillOptions:
        """The options with `auto` replaced by what the cost model chose, once per run."""
        if "auto" not in options.size:
            return options
        chosen = self.work.read("sizes")
        if not chosen:
            name, predicted = choose_size(self.models)
            chosen = {"chosen": name, "predicted_speedup": predicted}
            self.work.write("sizes", chosen)
        names = dict.fromkeys(chosen["chosen"] if name == "auto" else name for name in options.size)
        return replace(options, size=tuple(names))

    def _sample(self) -> StoredTexts:
        store = TextStore(self.work, self.models.target.vocab_size)
        if not store.state["is_finished"]:
            source = read_source(self.models, self.prompts, self.options)
            sample_texts(self.models, source, store, self.options, self.note)
        texts = store.open()
        if len(texts) < 2:
            raise DistillError(f"got {len(texts)} sampled texts, expected at least 2; raise --tokens or --time-budget")
        return texts

    def _begin(self) -> list[Any]:
        """The untrained drafts; the same ones every time."""
        target = self.models.target.model
        if self.options.init == "layers":
            target = load_stock_models(self.models.options)[0]
        return [begin_draft(shape, target, self.options.init, self.options.seed) for shape in self.shapes]

    def _train(self, texts: StoredTexts) -> list[Any]:
        use_own_attention(self.models.target.model)
        teacher = Teacher(self.models.target.model, self.models.target.vocab_size)
        drafts = self._begin()
        numbers, held_out = texts.split()
        with training_memory_errors():
            if not self.work.read("before"):
                self.work.write("before", {"overlaps": measure_overlap(teacher, drafts, texts, held_out)})
            trainer = Trainer(teacher, drafts, self.options, self.work)
            trainer.run(texts, numbers, self._training_seconds(), self.note)
            if not self.work.read("after"):
                self.work.write("after", {"overlaps": measure_overlap(teacher, drafts, texts, held_out)})
        return drafts

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
                    figures[key] = {"overlap": overlap} | tokens_per_call(self.models, draft, prompts)
                    self.work.write("evaluate", figures)
        self.note("evaluate", 1.0, "")
        return {
            "target": asdict(self.models.options),
            "options": asdict(self.options),
            "sizes": self.work.read("sizes") or None,
            "run": describe_run(),
            "sample": self.work.read("sample"),
            "train": self.work.read("train"),
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

    def _card(self, shape: DraftShape, draft: Any, report: dict[str, Any]) -> dict[str, Any]:
        found = report["drafts"][shape.name]
        labels = {"overlap": "overlap"} | {
            name: f"tokens per call, {name}" for name in found["after"] if name != "overlap"
        }
        rows = [
            f"| {label} | {found['before'][key]:.3f} | {found['after'][key]:.3f} |" for key, label in labels.items()
        ]
        target = self.models.options.target
        if self.models.options.adapter is not None:
            target += f" with the adapter {self.models.options.adapter}"
        return {
            "target": target,
            "model_type": type(draft).__name__,
            "parameters": found["parameters"] / 1e6,
            "shape": f"hidden {draft.config.hidden_size}, {draft.config.num_hidden_layers} layers",
            "figures": "\n".join(rows),
            "texts": report["sample"]["texts"],
            "tokens": report["sample"]["tokens"],
            "temperatures": ", ".join(f"{value:g}" for value in TEMPERATURES),
            "prompts": f"{len(self.prompts):,} given, the others written by the target",
            "init": self.options.init,
            "loss": self.options.loss,
            "seen": report["train"]["tokens"],
            "sampling_s": report["sample"]["seconds"],
            "training_s": report["train"]["seconds"],
            "device": report["run"]["machine"]["processor"] if self.models.target.device.type == "cpu" else "CUDA",
            "command": report["run"]["command"],
        }


def _fingerprint(models: ModelOptions, options: DistillOptions, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What must be alike for a run to be gone on with, ready for JSON."""
    chosen = {name: value for name, value in asdict(options).items() if name not in FREE_SETTINGS}
    chosen |= {name: getattr(models, name) for name in ("target", "adapter", "dtype", "revision")}
    digest = hashlib.sha256(json.dumps(list(prompts), default=str).encode()).hexdigest()[:16] if prompts else None
    fingerprint: dict[str, Any] = json.loads(json.dumps(chosen | {"prompts": digest}))
    return fingerprint
