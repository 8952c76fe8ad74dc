"""Bounds of the server: what waits, how long, and how much memory bodies and headers take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlrm_mtl.core import cores
from dlrm_mtl.serve.http.gate import BodyMemory, Gate
from dlrm_mtl.serve.http.limits import RefusedRequest, ServerLimits
from dlrm_mtl.serve.http.metrics import ServerMetrics
from dlrm_mtl.serve.http.protocol import HEAD_BYTES
from tests.serve.http.servers import ROW, RunningServer, running


@pytest.fixture(scope="module")
def metrics() -> ServerMetrics:
    return ServerMetrics()


def test_one_more_than_the_queue_holds(metrics: ServerMetrics) -> None:
    async def main() -> None:
        gate, go = Gate(ServerLimits(queue=2, concurrency=1), metrics), threading.Event()
        inside = [asyncio.create_task(gate.run(lambda number=number: go.wait() and number)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedRequest, match="the queue of this worker is full") as refused:
            await gate.run(lambda: 9)
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        go.set()
        assert await asyncio.gather(*inside) == [0, 1, 2]
        assert await gate.run(lambda: 9) == 9
        gate.close()

    asyncio.run(main())


def test_what_waits_too_long_is_not_begun(metrics: ServerMetrics) -> None:
    async def main() -> None:
        gate, go, begun = Gate(ServerLimits(queue=1, timeout=0.05), metrics), threading.Event(), []
        first = asyncio.create_task(gate.run(go.wait))
        second = asyncio.create_task(gate.run(lambda: begun.append(1)))
        for task in (first, second):
            with pytest.raises(RefusedRequest, match=r"not scored within 0\.05 seconds"):
                await task
        with pytest.raises(RefusedRequest):  # the first one keeps its thread
            await asyncio.gather(*(gate.run(go.wait) for _ in range(2)))
        go.set()
        gate.close()
        assert begun == []

    asyncio.run(main())


def test_the_memory_of_bodies() -> None:
    memory = BodyMemory(10)
    memory.hold(6)
    with pytest.raises(RefusedRequest, match="requests in memory are too large together"):
        memory.hold(5)
    memory.release(6)
    memory.hold(10)


@pytest.mark.parametrize(
    ("content", "wanted"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("", 64)]
)
def test_cores_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, wanted: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(64)))
    assert cores.available_cores() == wanted


@pytest.fixture(scope="module")
def small(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """A server with narrow bounds."""
    options = ("--workers", 1, "--queue", 0, "--timeout", 3)
    with running(tmp_path_factory.mktemp("small") / "log", shop / "step_2", *options) as server:
        yield server


def exchange(server: RunningServer, sent: bytes) -> bytes:
    """Bytes that the server answers on a connection of its own, up to its end; none if it does not read all of ``sent``."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        found = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
            while piece := connection.recv(1 << 16):
                found += piece
        return found


def test_a_body_that_does_not_arrive(small: RunningServer) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
    answer = exchange(small, head + b"{")
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'{"error": "body: did not arrive within 3 seconds.", "version": ' in answer


def test_more_requests_than_a_server_without_a_queue_takes(small: RunningServer) -> None:
    def send(_: int) -> tuple[int, str | None]:
        with small.client() as client:
            answer = client.post("/v1/score", json={"rows": [ROW] * 10_000})
            return answer.status_code, answer.headers.get("retry-after")

    with ThreadPoolExecutor(6) as threads:
        found = set(threads.map(send, range(6)))
    assert found == {(200, None), (503, "1")}


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 2 * HEAD_BYTES,
        b"GET /" + b"x" * 2 * HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (HEAD_BYTES // 3),
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_is_no_http(small: RunningServer, sent: bytes) -> None:
    answer = exchange(small, sent)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    with small.client() as client:
        assert client.get("/healthz").status_code == 200
    assert "Traceback" not in small.printed()


def test_several_requests_of_one_connection(small: RunningServer) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert exchange(small, one * 2000 + last).count(b"HTTP/1.1 200 OK") == 2001
