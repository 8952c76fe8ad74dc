"""The server's processes: they end gently, are replaced, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import commands
from tests.serve.http.load import Load
from tests.serve.http.servers import ROW, RunningServer, running, wait_until


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def slow_request(server: RunningServer) -> tuple[socket.socket, bytes]:
    """A connection with half a request, and the other half."""
    body = b'{"rows": []}'
    head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(head + body[:5])
    return connection, body[5:]


def test_a_worker_that_dies_is_replaced(shop: Path, tmp_path: Path) -> None:
    with running(tmp_path / "log", shop / "step_2", "--workers", 2) as server:
        first, second = server.workers()
        os.kill(first, signal.SIGKILL)
        server.wait_for(f"worker {first} has ended (signal SIGKILL); another one takes its place")
        with Load(server, connections=1) as load:  # the other one answers meanwhile
            wait_until(
                lambda: len(set(server.workers()) - {first, second}) == 1 and len(load.answers) > 2, server.printed
            )
        os.kill(second, signal.SIGKILL)
        with server.client() as client:  # waits for the new one, if that has still to load
            assert client.post("/v1/score", json={"rows": [ROW]}).status_code == 200
            wait_until(lambda: "dlrm_mtl_worker_restarts_total 2.0" in client.get("/metrics").text, server.printed)
        assert load.errors == []
        assert {status for status, _, _ in load.answers} == {200}


def test_sigterm_finishes_what_has_begun(shop: Path, tmp_path: Path) -> None:
    with running(tmp_path / "log", shop / "step_2", "--workers", 1) as server:
        (worker,) = server.workers()
        with server.client() as client:
            client.get("/healthz")  # a connection that is idle does not hold the server
            connection, rest = slow_request(server)
            wait_until(lambda: "dlrm_mtl_requests" in client.get("/metrics").text, server.printed)
            os.kill(server.process.pid, signal.SIGTERM)
            wait_until(lambda: refuses(server), server.printed)
            connection.sendall(rest)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
            connection.close()
        assert server.process.wait(30) == 0
        assert not alive(worker)
        assert "Traceback" not in server.printed()


def refuses(server: RunningServer) -> bool:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) != 0


def test_workers_end_with_a_server_that_is_killed(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commands.ENVIRONMENT, "TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with running(tmp_path / "log", shop / "step_2", "--workers", 2) as server:
        workers = server.workers()
        with server.client() as client:
            assert client.get("/readyz").status_code == 200
        assert [path.name[:17] for path in (tmp_path / "temporary").iterdir()] == ["dlrm-mtl-metrics-"]
        os.kill(server.process.pid, signal.SIGKILL)
        wait_until(lambda: not any(alive(worker) for worker in workers), server.printed)
        assert list((tmp_path / "temporary").iterdir()) == []


def test_a_port_that_is_taken(shop: Path, call: Callable[..., tuple[int, str]]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, printed = call("serve", shop / "step_2", "--port", port)
    assert (code, printed) == (
        2,
        f"error: --host 127.0.0.1 --port {port}: cannot be listened on (Address already in use); choose others, or --port 0 "
        "for a free port.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none"], "none: there is no bundle here; name the folder that `dlrm-mtl export` wrote"),
        (["."], ".: there is no bundle here yet; export one, or wait for it with --watch."),
        (
            ["s3://bucket/bundle"],
            "s3://bucket/bundle: a bundle is served from a local folder; copy it to this machine.",
        ),
        (["none", "--missing", "sometimes"], "--missing sometimes: 'sometimes' is not a policy"),
        ([".good", "--max-body", "much"], "--max-body much: is no size; write one such as 16MiB or 1GB."),
    ],
)
def test_mistakes(
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., tuple[int, str]],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".good").symlink_to(shop / "step_2")
    code, printed = call("serve", *arguments, "--port", 0)
    assert code == 2
    assert printed.startswith(f"error: {sentence}")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--missing", "usr=default"], "missing: there is no feature 'usr'"),
        (["--request-log", "none/log"], "none/log: cannot be written (No such file or directory)"),
        (["--slow-log", "."], ".: is no file that can be appended to; name another one."),
    ],
)
def test_mistakes_that_a_worker_finds(shop: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = commands.run("serve", shop / "step_2", *arguments, "--port", 0, "--workers", 1, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sentence}")
    assert len(done.stderr.splitlines()) == 1
