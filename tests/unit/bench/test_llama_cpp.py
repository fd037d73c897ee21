"""llama.cpp as a peer: what it is asked, how its replies are counted, and what happens without it."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from mtad.bench.llama_cpp import LlamaCppPeer
from mtad.bench.llama_cpp_server import IsolatedServer, LlamaCppServer, load_llama_cpp
from mtad.bench.workloads import SpeedWorkload
from mtad.errors import ConfigError

WORKLOAD = SpeedWorkload(prompt_tokens=0, new_tokens=3, batch_size=2, temperature=0.7)


class FakeServer:
    opened: ClassVar[list[Any]] = []

    def __init__(self, settings: Any) -> None:
        if settings.model.path.endswith("broken.gguf"):
            raise RuntimeError("bad magic")
        self.settings = settings
        self.requests: list[dict[str, Any]] = []
        FakeServer.opened.append(self)

    def handle_completions(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        if request["prompt"] == [13]:
            return {"error": {"code": 400, "message": "no"}}
        return {"__verbose": {"tokens": [7, 8, 9]}, "timings": {"prompt_ms": 1e-6 * len(request["prompt"])}}


def fake_module() -> Any:
    FakeServer.opened = []
    settings = lambda: SimpleNamespace(  # noqa: E731
        model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
    )
    return SimpleNamespace(CommonParams=settings, Server=FakeServer)


def make_peer(weights: Path) -> LlamaCppPeer:
    server = LlamaCppServer(weights, 2, fake_module())
    return LlamaCppPeer(server, weights, lambda prompts, answers: -1.5 * len(answers), top_k=5, top_p=0.8)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(100))
    return path


def test_every_row_is_a_request_with_the_same_settings_as_ours(weights: Path) -> None:
    sample = make_peer(weights).run([[1, 2], [3, 4, 5]], WORKLOAD, seed=4)
    (server,) = FakeServer.opened
    requests = sorted(server.requests, key=lambda request: len(request["prompt"]))
    assert [request["prompt"] for request in requests] == [[1, 2], [3, 4, 5]]
    assert [request["seed"] for request in requests] == [4, 1004]
    for request in requests:
        wanted = {"max_tokens": 3, "temperature": 0.7, "top_k": 5, "top_p": 0.8, "min_p": 0.0, "ignore_eos": True}
        assert wanted.items() <= request.items()
    assert server.settings.n_parallel == 2
    assert server.settings.n_ctx >= 2 * 6
    assert server.settings.cpuparams.n_threads == server.settings.cpuparams_batch.n_threads == 2
    assert (sample.num_tokens, sample.num_decoded, sample.log_prob_sum) == (6, 6, -3.0)
    assert sample.prefill_s == pytest.approx(3e-9)
    assert (sample.num_iterations, sample.floor_bytes) == (3, 300)


def test_a_server_is_kept_while_it_is_large_enough(weights: Path) -> None:
    peer = make_peer(weights)
    for prompts in ([[1], [2]], [[1], [2, 3]], [[1], list(range(100))], [[1]]):
        peer.run(prompts, WORKLOAD, seed=0)
    assert [server.settings.n_parallel for server in FakeServer.opened] == [2, 2, 1]


def test_what_cannot_be_loaded_or_is_refused_is_said(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llama.cpp cannot load .*broken.gguf .*bad magic"):
        make_peer(tmp_path / "broken.gguf").run([[1]], WORKLOAD, seed=0)
    with pytest.raises(ConfigError, match=r"llama.cpp refused a request: no"):
        make_peer(weights).run([[13]], WORKLOAD, seed=0)


def test_the_process_of_its_own_says_what_it_cannot_load(weights: Path) -> None:
    server = IsolatedServer(weights, 1)
    with pytest.raises(ConfigError, match=r"llama.cpp cannot load .*model.gguf"):
        server.make_room(1, 8)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match="needs the package xllamacpp"):
        load_llama_cpp()
