"""Listening, and a quiet end: answers that run are finished, new ones are sent elsewhere."""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn

from mtad.config import ServerOptions
from mtad.errors import ConfigError
from mtad.server.app import Service, create_app
from mtad.server.connections import patient_protocol

_log = logging.getLogger("mtad.server")
_CHECK_SECONDS = 0.1
_UNREAD_MS = 60_000


def listen(options: ServerOptions) -> socket.socket:
    """A socket at the address.

    Raises:
        ConfigError: The address is taken, or is none of this machine's.
    """
    try:
        listener = socket.create_server((options.host, options.port), backlog=2048)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {options.host}:{options.port} ({error}); choose another --host or --port"
        ) from error
    # Connections inherit these: one whose other end is gone, or reads nothing, does not stay for ever.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
    return listener


class DrainingServer(uvicorn.Server):
    """Ends in two steps: the first signal turns new requests away and waits, a second one ends at once.

    Args:
        config: Uvicorn's.
        service: Told that it is draining.
        patience: Seconds that running answers get.
    """

    def __init__(self, config: uvicorn.Config, service: Service, patience: float) -> None:
        super().__init__(config)
        self._service = service
        self._patience = patience
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.startup`."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or end at once where that has begun."""
        if self._service.is_draining or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._service.is_draining = True
        _log.warning(
            "%s: %d answers are finished, new ones are refused", signal.Signals(sig).name, self._service.num_open
        )
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._patience
        while self._service.num_open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_CHECK_SECONDS)
        self.should_exit = True


def make_server(service: Service, options: ServerOptions) -> DrainingServer:
    """A server that is ready to be run on a socket."""
    config = uvicorn.Config(
        create_app(service, options),
        http=patient_protocol(options.body_timeout),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        lifespan="on",
    )
    return DrainingServer(config, service, options.drain_timeout)
