"""Fixtures that every folder of tests may use."""

import os

import pytest

from mtad.models.pairs import PairPaths, pair_paths

# Set before anything imports transformers: no test may ask a hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny tensors gain nothing from threads, and on a busy machine the threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def default_pair_paths() -> PairPaths:
    """The real default pair, downloaded and converted on first use."""
    return pair_paths()
