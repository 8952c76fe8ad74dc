"""Google's object store for tests: a real server that speaks its protocol, in a process of its own.

Run as a module it is that process: it prints its port, and serves until its standard input ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def object_store() -> Iterator[str]:
    """Serve an empty bucket, ``bucket``; yields the server's address."""
    pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator, which plays the store, is not installed")
    command = [sys.executable, "-m", "tests.gcs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate()


def _serve() -> None:
    import http.server

    # Its own server answers one request at a time, and Arrow begins one while it has another open.
    http.server.HTTPServer = http.server.ThreadingHTTPServer  # type: ignore[misc]
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    print(server._api._httpd.server_address[1], flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _serve()
