"""A tiny engine for the tests of the API."""

import pytest
from tests.tiny_engine import tiny_engine

from mtad.api import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()
