"""The server's first process: it holds the socket, starts the workers, replaces those that die, and ends them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.http.metrics import ServerMetrics, forget_process, shared_metrics
from dlrm_mtl.serve.http.options import ServerOptions
from dlrm_mtl.serve.http.source import ModelVersion, VersionSource
from dlrm_mtl.serve.http.worker import GRACE, Fails, Refuses, Serves, Waits, work

SHORT = 10.0
"""Seconds; a worker that lived shorter is replaced only after a pause, which doubles each time."""
LONGEST_PAUSE = 30.0
CONTEXT = multiprocessing.get_context("fork")
"""Workers share the memory of imported modules, and start at once. This process computes nothing and starts no threads."""
logger = logging.getLogger(__name__)


def serve(source: VersionSource, options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT; what has begun is finished.

    Raises:
        UserError: the address cannot be used, a log not be written, or the source has no version that is fit for use.
        RuntimeError: the first workers die while they start.
    """
    with shared_metrics(), _listener(options) as listener, _signals() as signals:
        _Supervisor(source, options, listener, signals).run()


class _Worker:
    """A worker's process and what is known about it."""

    def __init__(self, process: ForkProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.started = time.monotonic()
        self.answers = False
        self.failure = ""


class _Supervisor:
    def __init__(
        self, source: VersionSource, options: ServerOptions, listener: socket.socket, signals: socket.socket
    ) -> None:
        self._source, self._options, self._listener, self._signals = source, options, listener, signals
        self._workers: list[_Worker] = []
        self._due: list[float] = []
        self._pause = 1.0
        self._answers = False
        self._good: ModelVersion | None = None
        self._said: set[str] = set()
        self._metrics = ServerMetrics()

    def run(self) -> None:
        try:
            for _ in range(self._options.workers):
                self._start()
            while not self._stopped():
                self._look()
                self._replace()
        finally:
            self._end()

    def _start(self) -> None:
        receiving, sending = CONTEXT.Pipe(duplex=False)
        arguments = (os.getpid(), self._listener, sending, self._source, self._options, self._good)
        process = CONTEXT.Process(target=work, args=arguments, name="dlrm-mtl-worker")
        process.start()
        sending.close()
        self._workers.append(_Worker(process, receiving))

    def _stopped(self) -> bool:
        try:
            return bool(self._signals.recv(16))
        except BlockingIOError:
            return False

    def _look(self) -> None:
        """Wait for a message, the end of a worker, a signal, or the time of a new worker."""
        things: list[Connection | socket.socket | int] = [self._signals]
        for worker in self._workers:
            things += [worker.pipe, worker.process.sentinel]
        wait(things, max(min(self._due, default=time.monotonic() + 60.0) - time.monotonic(), 0.0))
        for worker in self._workers:
            self._hear(worker)
        for worker in [each for each in self._workers if not each.process.is_alive()]:
            self._hear(worker)
            self._workers.remove(worker)
            self._mourn(worker)

    def _hear(self, worker: _Worker) -> None:
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, Serves):
                    if self._good is None or self._good.key != message.origin.key:
                        logger.info("%s, from %s", message.text, message.origin.name)
                    self._good = message.origin
                    self._announce(worker)
                elif isinstance(message, Waits):
                    self._say("waits", f"{self._source.name}: no bundle is there yet; requests get 503 until one is.")
                    self._announce(worker)
                elif isinstance(message, Refuses):
                    place = self._source.name if message.origin is None else message.origin.key
                    self._say(f"refuses {place} {message.reason}", f"not served: {message.reason}", logging.WARNING)
                elif isinstance(message, Fails):
                    worker.failure = message.reason
        except EOFError:
            pass

    def _say(self, what: str, text: str, level: int = logging.INFO) -> None:
        """Log what all workers report, once."""
        if what not in self._said:
            self._said.add(what)
            logger.log(level, "%s", text)

    def _announce(self, worker: _Worker) -> None:
        worker.answers = True
        if self._answers:
            return
        self._answers = True
        host, port = self._listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        count = self._options.workers
        logger.info("%s: answers, %s worker%s; try: curl %s/v1/model", url, count, "s" if count > 1 else "", url)

    def _mourn(self, worker: _Worker) -> None:
        """A worker has ended by itself."""
        pid, code = worker.process.pid, worker.process.exitcode or 0
        assert pid is not None
        worker.process.join()
        worker.pipe.close()
        forget_process(pid)
        if not self._answers:
            if worker.failure:
                raise UserError(worker.failure)
            raise RuntimeError(f"a worker ended while it started ({_ending(code)})")
        short = time.monotonic() - worker.started < SHORT
        pause = self._pause if short else 0.0
        self._pause = min(self._pause * 2, LONGEST_PAUSE) if short else 1.0
        self._due.append(time.monotonic() + pause)
        self._metrics.restarts.inc()
        when = f"in {pause:.0f} s" if pause else "now"
        why = worker.failure or _ending(code)
        logger.warning("worker %s has ended (%s); another one takes its place %s", pid, why, when)

    def _replace(self) -> None:
        now = time.monotonic()
        for due in [each for each in self._due if each <= now]:
            self._due.remove(due)
            self._start()

    def _end(self) -> None:
        """End all workers: gently, then by force."""
        self._listener.close()
        for worker in self._workers:
            worker.process.terminate()
        limit = time.monotonic() + self._options.limits.timeout + GRACE + 1.0
        for worker in self._workers:
            worker.process.join(max(limit - time.monotonic(), 0.0))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@contextmanager
def _listener(options: ServerOptions) -> Iterator[socket.socket]:
    """A bound socket that does not listen yet: clients are refused until there is something to answer with."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {options.host} --port {options.port}: cannot be listened on ({error.strerror}); choose others, or "
            "--port 0 for a free port."
        ) from None
    with listener:
        yield listener


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that becomes readable when SIGTERM or SIGINT arrives."""
    receiving, sending = socket.socketpair()
    receiving.setblocking(False)
    sending.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    try:
        yield receiving
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        receiving.close()
        sending.close()
