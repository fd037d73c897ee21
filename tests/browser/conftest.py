"""A tiny server and a headless browser that may talk to nobody else."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from tests.chromium import FLAGS, find_chromium
from tests.tiny_engine import tiny_engine
from tests.unit.server.conftest import Running, wait_until

from mtad.config import GenerationOptions, ServerOptions, SessionOptions
from mtad.server.app import Service
from mtad.server.running import listen, make_server

OpenPage = Callable[..., Page]

PATIENCE_MS = 30_000


def run_server(keys: dict[str, str]) -> Iterator[Running]:
    options, session = ServerOptions(port=0), SessionOptions(max_rows=4, max_tokens=2000, prefill_chunk=64)
    listener, engine = listen(options), tiny_engine(max_positions=2048)
    service = Service(engine, GenerationOptions(max_new_tokens=24, ignore_eos=True), session, options, keys)
    server = make_server(service, options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, server, engine)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server whose answers do not end by themselves, so that a test says how long they are."""
    yield from run_server({})


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    """A server that asks for a key."""
    yield from run_server({"somebody": "open sesame"})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # No longer than a module: while it runs, this thread has an event loop, which other tests want for themselves.
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def open_page(running: Running, browser: Browser) -> Iterator[OpenPage]:
    """Opens the playground; at the end, no page may have complained, or asked another host for anything."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    asked: list[str] = []
    origins: set[str] = set()

    def note(line: ConsoleMessage, is_refused: bool) -> None:
        # A browser notes every refused request in its console, which a test of refusals expects.
        if line.type in ("error", "warning") and not is_refused:
            complaints.append(line.text)

    def start(fragment: str = "", *, server: Running = running, is_refused: bool = False, **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        origins.add(server.url + "/")
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: note(line, is_refused))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{server.url}/{fragment}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked
    assert [url for url in asked if not url.startswith(tuple(origins))] == []
