"""A text-to-SQL model and its draft, from Spider: an adapter, a draft distilled from the adapted target, the figures.

    python recipes/spider.py --data ./data --out runs/spider
    python recipes/spider.py --data ./data --out runs/spider-quick --quick

`--data` holds `spider/` with `train_spider.json`, `dev.json`, `tables.json` and `database/`. A killed run that is
started again by the same words goes on where it was. `--quick` shows that everything works, and nothing more.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mtad.api.prompts import PromptFormat, encode_prompt
from mtad.cli.main import main as run_mtad
from mtad.config import ModelOptions
from mtad.distill.lessons import narrow
from mtad.distill.work import WorkFolder, disk_errors, sync
from mtad.errors import MtadError
from mtad.evaluation.tasks.spider import training_pairs
from mtad.models.adapters import CONFIG_NAME, WEIGHTS_NAME
from mtad.models.loading import load_stock_models
from mtad.models.pairs import KNOWN_PAIRS, pair_paths, resolve_model
from mtad.models.placement import choose_device
from mtad.models.quiet import quiet_libraries
from mtad.models.tokenizers import load_tokenizer

RANK, IGNORED = 32, -100
RULES = ("autoregressive", "autoregressive:temperature=0", "speculative", "mtad", "mmtad")
CHECKPOINT_S = 60.0
_LARGEST_GRADIENT, _WARMUP_SHARE = 1.0, 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything.

    Attributes:
        examples: Questions that the adapter is trained on; None means all.
        epochs: Passes over them.
        batch: Questions of one step.
        learning_rate: Largest one.
        distill: Further flags of `mtad distill`.
        evaluate: Further flags of `mtad evaluate`.
    """

    examples: int | None = None
    epochs: int = 6
    batch: int = 16
    learning_rate: float = 5e-4
    distill: tuple[str, ...] = ("--tokens=1000000", "--epochs=4")
    evaluate: tuple[str, ...] = ("--batch-size=16",)


QUICK = Plan(
    examples=24,
    epochs=1,
    batch=4,
    distill=("--tokens=1500", "--epochs=1", "--sampling-batch=8", "--batch-tokens=2048"),
    evaluate=("--limit=4", "--max-new-tokens=32", "--batch-size=4"),
)


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts and answers; an answer ends as the target's do."""
    encoded = []
    for prompt, query in pairs:
        answer = tokenizer(query, add_special_tokens=False, verbose=False)["input_ids"]
        encoded.append((encode_prompt(tokenizer, prompt, PromptFormat()), [*answer, tokenizer.eos_token_id]))
    return encoded


def order(count: int, plan: Plan, seed: int) -> list[list[int]]:
    """The examples of every step, all epochs one behind another."""
    steps = []
    for epoch in range(plan.epochs):
        numbers = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(numbers)
        steps += [numbers[start : start + plan.batch] for start in range(0, count, plan.batch)]
    return steps


def pad(batch: Sequence[tuple[list[int], list[int]]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded tokens and labels, `[rows, longest]` int64; prompts and padding have no label."""
    longest = max(len(prompt) + len(answer) for prompt, answer in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORED)
    for row, (prompt, answer) in enumerate(batch):
        text = torch.tensor(prompt + answer)
        tokens[row, : len(text)] = text
        labels[row, len(prompt) : len(text)] = text[len(prompt) :]
    return tokens.to(device), labels.to(device)


class AdapterTrainer:
    """LoRA on all linear layers, with checkpoints.

    Args:
        model: The target in float32.
        work: Where the checkpoint goes.
        learning_rate: Largest one.
    """

    def __init__(self, model: Any, work: WorkFolder, learning_rate: float) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]), quiet_libraries():
            torch.manual_seed(0)
            self.model = get_peft_model(model, config)
        self.weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.learning_rate = learning_rate
        self._optimizer = torch.optim.AdamW(self.weights.values(), lr=learning_rate, weight_decay=0.0)
        self._file = work.path / "checkpoint.pt"
        self.step = 0

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        if not self._file.exists():
            return
        kept = torch.load(self._file, weights_only=True)
        self.step = kept["step"]
        self._optimizer.load_state_dict(kept["optimizer"])
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(kept["weights"][name])

    def save(self) -> None:
        """Write the checkpoint in one step."""
        partial = self._file.with_suffix(".partial")
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        with disk_errors(self._file.parent):
            with partial.open("wb") as file:
                torch.save({"step": self.step, "weights": weights, "optimizer": self._optimizer.state_dict()}, file)
                sync(file)
            partial.replace(self._file)

    def learn(self, tokens: Tensor, labels: Tensor, progress: float) -> float:
        """One step; returns the loss."""
        with narrow(tokens.device, self.model):
            loss = self.model(input_ids=tokens, labels=labels).loss
        if not math.isfinite(float(loss.detach())):
            raise MtadError(
                f"the loss became {float(loss.detach())} at step {self.step + 1}, expected a number; lower the "
                "learning rate in Plan and use another --out"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), _LARGEST_GRADIENT)
        rise = min((progress + 1e-3) / _WARMUP_SHARE, 1.0)
        self._optimizer.param_groups[0]["lr"] = self.learning_rate * rise * (0.5 + 0.5 * math.cos(math.pi * progress))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())


def train_adapter(options: argparse.Namespace, plan: Plan, pairs: Sequence[tuple[str, str]], folder: Path) -> None:
    """Fill the adapter's folder, unless it is there."""
    work = WorkFolder(folder)
    training = {name: value for name, value in asdict(plan).items() if name not in ("distill", "evaluate")}
    work.open(training | {"target": options.target, "questions": len(pairs)})
    if (folder / WEIGHTS_NAME).exists():
        return
    device = choose_device(options.device)
    model, _ = load_stock_models(ModelOptions(target=options.target, device=str(device), dtype="float32"))
    examples = encode_pairs(load_tokenizer(resolve_model(options.target, "target"), "target"), pairs)
    trainer = AdapterTrainer(model, work, plan.learning_rate)
    trainer.resume()
    steps = order(len(examples), plan, 0)
    saved = time.monotonic()
    bar = tqdm(total=len(steps), initial=trainer.step, desc="adapter", disable=None)
    while trainer.step < len(steps):
        batch = [examples[number] for number in steps[trainer.step]]
        loss = trainer.learn(*pad(batch, device), trainer.step / len(steps))
        bar.set_postfix_str(f"loss {loss:.3f}")
        bar.update()
        if time.monotonic() - saved > CHECKPOINT_S:
            trainer.save()
            saved = time.monotonic()
    bar.close()
    with disk_errors(folder):
        trainer.model.save_pretrained(str(work.path / "write"))
        # The weights come last: a folder with weights is whole.
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            (work.path / "write" / name).replace(folder / name)


def run(options: argparse.Namespace) -> int:
    """Adapter, draft, figures; returns the exit status."""
    plan = QUICK if options.quick else Plan()
    pairs = training_pairs(options.data)[: plan.examples]
    out: Path = options.out
    models = ["--target", options.target, "--device", options.device, "--adapter", str(out / "adapter")]
    train_adapter(options, plan, pairs, out / "adapter")
    prompts = out / "prompts.jsonl"
    with disk_errors(out):
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt, _ in pairs]
        prompts.write_text("".join(lines), encoding="utf-8")
    begun = options.init or str(pair_paths(options.target).draft if options.target in KNOWN_PAIRS else "pca")
    distill = ["distill", *models, "--out", str(out / "draft"), "--init", begun, "--prompts", str(prompts)]
    distill += ["--self-written=0", "--prompt-tokens=1024", "--answer-tokens=96", "--learning-rate=5e-4"]
    status = run_mtad([*distill, *plan.distill])
    if status:
        return status
    evaluate = ["evaluate", *models, "--draft", str(out / "draft"), "--data", str(options.data), "--tasks", "spider"]
    return run_mtad([*evaluate, "--rules", *RULES, "--out", str(out / "evaluation"), *plan.evaluate])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="A text-to-SQL model and its draft, from Spider.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder that holds spider/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="adapter, draft and evaluation go here")
    parser.add_argument("--target", default="smollm2", help="the pair smollm2, a folder or a hub id")
    parser.add_argument("--init", help="draft to begin with (default: the pair's own, else pca)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="a few questions of everything")
    try:
        return run(parser.parse_args(arguments))
    except MtadError as error:
        print(f"spider: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
