"""8-bit weights on the default pair: nearly the same model, and a row that does not depend on its batch."""

import pytest
import torch

from mtad import Engine
from mtad.models.pairs import PairPaths

pytestmark = pytest.mark.integration

TEXTS = (
    "The river rises in the mountains to the north of the town and flows through a wide valley before it reaches the "
    "sea. For centuries the people of the valley have lived from fishing and from the small mills along its banks.",
    "Water boils when its vapour pressure equals the pressure of the air around it, so it boils at a lower temperature "
    "on a high mountain than at the coast.",
)
PROMPTS = ("What is the capital of France?", "Write one sentence about a cat.", "Count from one to ten in words.")


@pytest.fixture(scope="module")
def int8_engine(default_pair_paths: PairPaths) -> Engine:
    return Engine.from_pretrained(
        str(default_pair_paths.target),
        draft=str(default_pair_paths.draft),
        device="cpu",
        dtype="float32",
        quantization="int8",
    )


def test_texts_are_about_as_likely(engine: Engine, int8_engine: Engine) -> None:
    sequences = [engine.tokenizer(text)["input_ids"] for text in TEXTS]
    plain, int8 = (
        torch.tensor([value for text in which.score(sequences) for value in text.log_probs])
        for which in (engine, int8_engine)
    )
    assert (int8 - plain).abs().mean() < 0.2
    assert abs(float(int8.mean() - plain.mean())) < 0.05


@pytest.mark.parametrize("method", ["mmtad", "speculative", "autoregressive"])
def test_a_batch_decodes_as_its_rows_do(int8_engine: Engine, method: str) -> None:
    together = int8_engine.generate(PROMPTS, method=method, max_new_tokens=24, seed=3)
    alone = [int8_engine.generate(prompt, method=method, max_new_tokens=24, seed=3) for prompt in PROMPTS]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_drafts_are_kept_as_often(engine: Engine, int8_engine: Engine) -> None:
    def tokens_per_call(which: Engine) -> float:
        results = which.generate(PROMPTS, method="mmtad", max_new_tokens=48, ignore_eos=True, seed=1)
        return sum(r.stats.num_tokens for r in results) / sum(r.stats.target_calls for r in results)

    assert abs(tokens_per_call(int8_engine) / tokens_per_call(engine) - 1) < 0.25
