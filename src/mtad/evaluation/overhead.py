"""Where the time and the memory go as context and batch grow."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtad.api import Engine
from mtad.api.contenders import Contender
from mtad.errors import DataError
from mtad.evaluation.files import find_file, read_text

NEW_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadPlan:
    """What is measured: every context with every batch size.

    Attributes:
        contexts: Tokens of the prompts.
        batch_sizes: Rows.
        repeats: Times each is run, in turns; the median counts.
    """

    contexts: Sequence[int] = (64, 256, 1024)
    batch_sizes: Sequence[int] = (1, 4, 8)
    repeats: int = 3

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Repeat, context and batch size of every turn."""
        for repeat in range(self.repeats):
            for context in self.contexts:
                for batch_size in self.batch_sizes:
                    yield repeat, context, batch_size


def measure_overhead(
    engine: Engine, contenders: Sequence[Contender], data: Path, plan: OverheadPlan, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Milliseconds of an iteration, drafting, verifying and the rest apart, and bytes of caches.

    Args:
        engine: The models.
        contenders: Methods, which take turns.
        data: Data folder; prompts are cut from the text of WikiText-2.
        plan: What is measured.
        note: Called after every measurement.

    Raises:
        DataError: The text is missing or too short.
    """
    text = read_text(find_file(data, ["wikitext-2/test.txt", "wikitext-2/wiki.test.raw"]))
    token_ids = engine.tokenizer(text[: 16 * max(plan.contexts) * max(plan.batch_sizes)], verbose=False)["input_ids"]
    if len(token_ids) < max(plan.contexts) * max(plan.batch_sizes):
        raise DataError(f"the text in {data / 'wikitext-2'} is too short for such contexts; fetch it again")
    samples = []
    for repeat, context, batch_size in plan.places():
        prompts = [token_ids[row * context : (row + 1) * context] for row in range(batch_size)]
        for contender in contenders:
            options = replace(contender.options, max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=repeat)
            results = engine.generate(prompts, options, batch_size=batch_size)
            stats = max((result.stats for result in results), key=lambda item: item.decode_s)
            calls = max(stats.target_calls, 1)
            other_s = stats.decode_s - stats.draft_s - stats.verify_s
            samples.append(
                {
                    "contender": contender.label,
                    "context": context,
                    "batch_size": batch_size,
                    "repeat": repeat,
                    "draft_ms": 1000 * stats.draft_s / calls,
                    "verify_ms": 1000 * stats.verify_s / calls,
                    "other_ms": 1000 * other_s / calls,
                    "prefill_ms": 1000 * stats.prefill_s,
                    "tokens_per_s": sum(result.stats.num_tokens for result in results) / stats.decode_s,
                    "cache_bytes": stats.cache_bytes,
                }
            )
            note(f"{contender.label} {context} x {batch_size}")
    return samples
