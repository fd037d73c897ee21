"""Table models and whole runs over them, for tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tests.oracles import Array, Law, Path, log_softmax, table_logits, warp

from mtad.config import GenerationOptions
from mtad.decoding import AnswerLimits, Decoder, Request, RunFacts, build_decoder, generate_pieces
from mtad.models.table import TableRunner
from mtad.structures import GenerationResult, RowControls, RowSettings

ALL_METHODS = ("autoregressive", "speculative", "mtad", "mmtad", "beam_sampling", "dynamic_beam", "mtjd")


def random_table(seed: int, vocab: int, order: int = 1, scale: float = 1.5) -> torch.Tensor:
    """Logits of a random table model, float64 `[vocab] * (order + 1)`."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(scale * generator.standard_normal([vocab] * (order + 1)))


def table_law(table: torch.Tensor, prompt: Sequence[int], settings: RowSettings | None = None) -> Law:
    """Warped next-token law of a table model after a prompt; unwarped without settings."""
    values: Array = table.numpy()

    def law(path: Path) -> Array:
        logits = table_logits(values, [*prompt, *path])
        if settings is None:
            return log_softmax(logits)
        # The temperature reaches the tensors as a float32.
        temperature = float(np.float32(settings.temperature))
        return warp(logits, temperature=temperature, top_k=settings.top_k, top_p=settings.top_p)

    return law


def controls(*settings: RowSettings, one_hot_at_zero: bool = False, positions: Sequence[int] = ()) -> RowControls:
    """Row controls of these settings, at position 0 unless told."""
    rows = RowControls.from_settings(list(settings), one_hot_at_zero=one_hot_at_zero)
    return rows.at(torch.tensor(positions)) if positions else rows


def seeded_controls(setting: RowSettings, seeds: torch.Tensor) -> RowControls:
    """One row per seed, all with the same setting, at position 0."""
    rows = controls(setting).select(torch.zeros_like(seeds))
    return replace(rows, seeds=seeds)


@dataclass
class Run:
    """A method on a pair of tables."""

    target: torch.Tensor
    draft: torch.Tensor
    options: dict[str, Any]
    eos: frozenset[int] = frozenset()
    temperature: float = 1.0
    is_constrained: bool = False
    runners: list[TableRunner] = field(default_factory=list)

    def decoder(self) -> Decoder:
        target, draft = TableRunner(self.target), TableRunner(self.draft)
        self.runners = [target, draft]
        options = GenerationOptions(**self.options)
        texts = [letters([token]) for token in range(target.vocab_size)]
        return build_decoder(
            options,
            target,
            draft,
            self.eos,
            temperature=self.temperature,
            token_texts=lambda: texts,
            is_constrained=self.is_constrained,
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sequence[RowSettings],
        max_new_tokens: Sequence[int],
        stop: tuple[str, ...] = (),
    ) -> list[GenerationResult]:
        """One result per prompt, in order."""
        decoder = self.decoder()
        limits = [AnswerLimits(max_new_tokens=count, eos_token_ids=self.eos, stop=stop) for count in max_new_tokens]
        requests = [
            Request(row=row, prompt=prompt, settings=setting, limits=limit)
            for row, (prompt, setting, limit) in enumerate(zip(prompts, settings, limits, strict=True))
        ]
        facts = RunFacts(method=self.options["method"], gamma=decoder.gamma)
        results: dict[int, GenerationResult] = {}
        for piece in generate_pieces(decoder, requests, letters, facts):
            if piece.result is not None:
                assert piece.row not in results
                results[piece.row] = piece.result
        return [results[row] for row in range(len(prompts))]


def prefilled(
    table: torch.Tensor, prompts: Sequence[Sequence[int]], room: int = 80
) -> tuple[TableRunner, torch.Tensor, torch.Tensor]:
    """A runner that has cached all but the last token of each prompt, and the last two tokens of each."""
    runner = TableRunner(table)
    longest = max(len(prompt) for prompt in prompts)
    token_ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    lengths = torch.tensor([len(prompt) - 1 for prompt in prompts])
    runner.allocate(len(prompts), longest + room)
    runner.prefill(token_ids, lengths)
    pending = torch.tensor([prompt[-1] for prompt in prompts])
    previous = torch.tensor([prompt[-2] if len(prompt) > 1 else prompt[-1] for prompt in prompts])
    return runner, previous, pending


def letters(token_ids: Sequence[int]) -> str:
    """Token 0 is a, token 1 is b, and so on."""
    return "".join(chr(ord("a") + token) for token in token_ids)
