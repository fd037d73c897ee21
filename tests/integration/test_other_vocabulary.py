"""The default pair with a draft whose token ids are its own."""

import math
from pathlib import Path
from typing import Any

import pytest
from tests.other_vocabulary import save_with_other_vocabulary

from mtad import Engine
from mtad.models.pairs import PairPaths

pytestmark = pytest.mark.integration

PROMPTS = ("What is the capital of France?", "Write one sentence about a cat.")
THRESHOLD = 0.5
SETTINGS: dict[str, Any] = {"max_new_tokens": 20, "gamma": 3, "beam_width": 3, "seed": 1, "threshold": THRESHOLD}


def translated(pair: PairPaths, folder: Path) -> Engine:
    return Engine.from_pretrained(
        str(pair.target), draft=str(folder), device="cpu", dtype="float32", match_vocabularies="intersection"
    )


def test_a_shuffled_draft_gives_the_tokens_of_the_plain_one(
    engine: Engine, default_pair_paths: PairPaths, tmp_path: Path
) -> None:
    save_with_other_vocabulary(default_pair_paths.draft, tmp_path / "shuffled", dropped_share=0)
    shuffled = translated(default_pair_paths, tmp_path / "shuffled")
    vocabulary = shuffled.models.vocabulary
    assert vocabulary is not None
    assert vocabulary.num_shared == vocabulary.num_tokens == 49_152
    for method in ("mmtad", "speculative"):
        settings = SETTINGS | {"method": method, "max_new_tokens": 16}
        expected, got = (pair.generate(PROMPTS, **settings) for pair in (engine, shuffled))
        assert [result.token_ids for result in got] == [result.token_ids for result in expected]
        assert [result.accepted_lengths for result in got] == [result.accepted_lengths for result in expected]
        assert sum(map(sum, (result.accepted_lengths for result in got))) >= 3
        assert got[0].config["models"]["match_vocabularies"] == "intersection"
        assert expected[0].config["models"]["match_vocabularies"] == "exact"


def test_a_draft_without_a_fifth_of_the_tokens_still_drafts(default_pair_paths: PairPaths, tmp_path: Path) -> None:
    dropped = set(save_with_other_vocabulary(default_pair_paths.draft, tmp_path / "partial", dropped_share=0.2))
    partial = translated(default_pair_paths, tmp_path / "partial")
    assert partial.models.vocabulary is not None
    assert partial.models.vocabulary.num_shared == 49_152 - len(dropped)
    results = partial.generate(PROMPTS, method="mmtad", **SETTINGS)
    tokens = [pair for result in results for pair in zip(result.token_ids, result.provenance, strict=True)]
    drafted = {token for token, origin in tokens if origin == "drafted"}
    assert len(drafted) > 5
    assert not drafted & dropped
    assert {token for token, _ in tokens} & dropped
    blocks = [
        block for result in results for block in zip(result.accepted_lengths, result.joint_log_ratios, strict=True)
    ]
    assert min(ratio for length, ratio in blocks if length) > math.log(THRESHOLD)
