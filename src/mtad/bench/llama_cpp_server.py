"""llama.cpp's own server behind a call, by itself in a process of its own."""

import importlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from time import perf_counter
from typing import Any

from mtad.errors import ConfigError

_SPARE_SLOTS = 16


def load_llama_cpp() -> Any:
    """The module `xllamacpp`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise ConfigError(
            f"llama_cpp needs the package xllamacpp, which cannot be imported ({error}); "
            "install it with pip install 'mtad[bench]', or leave the contender out"
        ) from error


class LlamaCppServer:
    """One GGUF file, served to as many rows as are asked for.

    Args:
        weights: The file.
        num_threads: Threads that llama.cpp works with.
        module: What `load_llama_cpp` gives; None loads it.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(self, weights: Path, num_threads: int, module: Any = None) -> None:
        self._module = load_llama_cpp() if module is None else module
        self._weights = weights
        self._num_threads = num_threads
        self._server: Any = None
        self._room = (0, 0)

    def make_room(self, num_rows: int, num_tokens: int) -> None:
        """A server for so many rows of so many tokens; the one at hand where it is large enough.

        Raises:
            ConfigError: The file cannot be loaded.
        """
        rows, tokens = self._room
        if self._server is not None and rows == num_rows and tokens >= num_tokens:
            return
        self._server = None
        self._room = (num_rows, num_tokens + _SPARE_SLOTS)
        settings = self._module.CommonParams()
        settings.model.path = str(self._weights)
        settings.n_parallel = num_rows
        settings.n_ctx = num_rows * self._room[1]
        settings.cpuparams.n_threads = self._num_threads
        settings.cpuparams_batch.n_threads = self._num_threads
        settings.verbosity = -1
        try:
            self._server = self._module.Server(settings)
        except RuntimeError as error:
            raise ConfigError(
                f"llama.cpp cannot load {self._weights} ({error}); name a GGUF file of the target with --gguf"
            ) from error

    def complete(self, requests: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
        """Answer requests all at once.

        Returns:
            The replies in the requests' order, and the wall seconds until the last of them.

        Raises:
            ConfigError: A request was refused.
        """
        started = perf_counter()
        with ThreadPoolExecutor(len(requests)) as pool:
            replies = list(pool.map(self._complete, requests))
        return replies, perf_counter() - started

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        reply = self._server.handle_completions(request)
        document: dict[str, Any] = json.loads(reply) if isinstance(reply, str) else reply
        if "error" in document:
            raise ConfigError(f"llama.cpp refused a request: {document['error'].get('message', document['error'])}")
        return document


class _Manager(BaseManager):
    """Holds the server's process; it ends with the manager."""


_Manager.register("LlamaCppServer", LlamaCppServer)


class IsolatedServer:
    """A `LlamaCppServer` in a process of its own: in one process with torch, each slows the other's threads.

    Args:
        weights: The GGUF file.
        num_threads: Threads that llama.cpp works with.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(self, weights: Path, num_threads: int) -> None:
        self._manager = _Manager(ctx=get_context("spawn"))
        self._manager.start()
        self._server: Any = self._manager.LlamaCppServer(weights, num_threads)  # type: ignore[attr-defined]

    def make_room(self, num_rows: int, num_tokens: int) -> None:
        """See `LlamaCppServer.make_room`."""
        self._server.make_room(num_rows, num_tokens)

    def complete(self, requests: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
        """See `LlamaCppServer.complete`."""
        replies: tuple[list[dict[str, Any]], float] = self._server.complete(list(requests))
        return replies
