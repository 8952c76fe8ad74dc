"""A relay in front of a server, which counts what the server sends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlparse


class Relay:
    """Passes connections on to the server at ``url``."""

    def __init__(self, url: str) -> None:
        self.sent = 0
        """Bytes from the server so far, with all headers."""
        self._counting = threading.Lock()
        self._to = (urlparse(url).hostname, urlparse(url).port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._to)
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, count: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if count:
                    with self._counting:
                        self.sent += len(data)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()


@contextmanager
def relays(url: str, count: int) -> Iterator[list[Relay]]:
    """Several relays in front of the same server."""
    opened = [Relay(url) for _ in range(count)]
    try:
        yield opened
    finally:
        for relay in opened:
            relay.close()
