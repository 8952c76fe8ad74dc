"""A bounded load of requests for tests."""

from __future__ import annotations

import threading

from tests.serve.http.servers import ROW, RunningServer, wait_until

ROWS = {"rows": [ROW] * 200}


class Load:
    """Clients that send requests one after another until they are stopped.

    Args:
        server: the server.
        connections: number of clients; each request has a connection of its own.
    """

    def __init__(self, server: RunningServer, connections: int = 3) -> None:
        self._server = server
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._send) for _ in range(connections)]
        self.answers: list[tuple[int, str, tuple[float, ...]]] = []
        """Status, version, and scores of the first task, by answer."""
        self.errors: list[Exception] = []

    def _send(self) -> None:
        while not self._stop.is_set():
            try:
                with self._server.client() as client:
                    answer = client.post("/v1/score", json=ROWS)
                content = answer.json()
                found = (answer.status_code, content.get("version", ""), tuple(content["scores"]["click"]))
            except Exception as error:
                with self._lock:
                    self.errors.append(error)
                return
            assert content["version"] == answer.headers["model-version"]
            with self._lock:
                self.answers.append(found)

    def wait_for_more(self, count: int) -> None:
        """Wait for ``count`` more answers, or an error."""
        number = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= number or self.errors, self._server.printed)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
