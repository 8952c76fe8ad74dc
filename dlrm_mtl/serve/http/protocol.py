"""uvicorn's HTTP protocol with bounds on what comes before a request's body, which it does not have itself."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
"""Largest size of a request's line and headers in bytes."""
HEAD_SECONDS = 10.0
"""Time for the first request of a connection, and for the rest of later ones that have begun, up to the end of headers."""


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections whose headers are too large or do not arrive, so that they cannot fill memory or use up all places."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head, self._head = True, 0
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the headers are too large with it."""
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD_BYTES and b"\r\n\r\n" not in data:
                self.send_400_response("The headers are too large.")
                return
            if self._limit is None:
                self._limit = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Headers are complete."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next data begin with headers."""
        self._in_head, self._head = True, 0
        super().on_message_complete()

    def _stop_waiting(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
