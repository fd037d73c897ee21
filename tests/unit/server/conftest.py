"""A server over a tiny engine, on a real socket."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import pytest
from openai import OpenAI
from tests.tiny_engine import tiny_engine

from mtad.api import Engine
from mtad.config import GenerationOptions, ServerOptions, SessionOptions
from mtad.server.app import Service
from mtad.server.running import DrainingServer, listen, make_server
from mtad.server.server_log import ServerLog


@dataclass
class Running:
    """A server at work."""

    url: str
    service: Service
    server: DrainingServer
    engine: Engine

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


Serve = Callable[..., Running]


def wait_until(holds: Callable[[], Any], seconds: float = 20) -> None:
    deadline = monotonic() + seconds
    while not holds():
        assert monotonic() < deadline, "waited in vain"
        sleep(0.01)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that end with the test."""
    started: list[tuple[Running, threading.Thread]] = []

    def start(
        *, keys: dict[str, str] | None = None, max_rows: int = 8, seed: int | None = None, **limits: Any
    ) -> Running:
        options = ServerOptions(port=0, **limits)
        listener = listen(options)
        engine = tiny_engine()
        session = SessionOptions(max_rows=max_rows, max_tokens=120, prefill_chunk=16)
        log = ServerLog(options) if options.log_file else None
        service = Service(engine, GenerationOptions(max_new_tokens=12, seed=seed), session, options, keys or {}, log)
        server = make_server(service, options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, server, engine)
        started.append((running, thread))
        wait_until(lambda: server.started)
        return running

    yield start
    for running, thread in started:
        running.server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        if running.service.log is not None:
            running.service.log.close()
