"""The default pair, loaded once for all tests that run it."""

import pytest

from mtad import Engine
from mtad.models.pairs import PairPaths


@pytest.fixture(scope="session")
def engine(default_pair_paths: PairPaths) -> Engine:
    return Engine.from_pretrained(
        str(default_pair_paths.target), draft=str(default_pair_paths.draft), device="cpu", dtype="float32"
    )
