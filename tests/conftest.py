"""Fixtures that every folder of tests may use."""

import os

import pytest

from mtad.models.pairs import PairPaths, pair_paths

# Set before anything imports transformers: no test may ask a hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def default_pair_paths() -> PairPaths:
    """The real default pair, downloaded and converted on first use."""
    return pair_paths()
