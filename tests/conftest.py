"""Fixtures that every folder of tests may use."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from tests.chromium import ADVICE, find_chromium

from mtad.models.pairs import PairPaths, pair_paths

# Set before anything imports transformers: no test may ask a hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny tensors gain nothing from threads, and on a busy machine the threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Its own conftest needs the driver's package.
collect_ignore = [] if find_spec("playwright") else ["browser"]


def pytest_report_header() -> list[str]:
    return [] if find_chromium() else [ADVICE]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the browser tests out where there is no browser."""
    if find_chromium():
        return
    left_out = [item for item in items if item.get_closest_marker("browser")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def still_clock() -> Iterator[None]:
    """Guards act on what iterations take: engines of tests see no time go by, so their answers can be repeated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtad.api.engine.perf_counter", lambda: 0.0)
        yield


@pytest.fixture(scope="session")
def default_pair_paths() -> PairPaths:
    """The real default pair, downloaded and converted on first use."""
    return pair_paths()
