"""Connections that nobody uses are closed."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """HTTP that closes connections on which no request has come whole for so long; half a head keeps none open."""

    class PatientProtocol(H11Protocol):
        """Looks at its connection every so often."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """See `asyncio.Protocol.connection_made`."""
            super().connection_made(transport)
            self._look_later()

        def _look_later(self) -> None:
            self.loop.call_later(seconds, self._look, self.cycle)

        def _look(self, before: object) -> None:
            """Close the connection if no request has begun since, and no reply is on its way."""
            is_idle = self.cycle is None or self.cycle.response_complete
            if self.cycle is before and is_idle:
                self.transport.close()
            elif not self.transport.is_closing():
                self._look_later()

    return PatientProtocol
