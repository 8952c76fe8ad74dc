"""A worker process: it loads the model, then answers requests from the socket that all workers share."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
import uvicorn

from dlrm_mtl.core.errors import EXIT_CODE, UserError
from dlrm_mtl.core.orphans import end_with_parent
from dlrm_mtl.serve.http.app import RequestLogs, ScoringApp
from dlrm_mtl.serve.http.metrics import ServerMetrics, remove_metrics
from dlrm_mtl.serve.http.options import ServerOptions
from dlrm_mtl.serve.http.protocol import BoundedProtocol
from dlrm_mtl.serve.http.request_log import RequestLog
from dlrm_mtl.serve.http.serving import Serving
from dlrm_mtl.serve.http.source import ModelVersion, VersionSource
from dlrm_mtl.serve.scorer import Scorer

BACKLOG = 2048
"""Connections that wait to be accepted."""
GRACE = 5.0
"""Seconds that a worker gets at the end beside the time limit of a request."""


class Serves(NamedTuple):
    """Message of a worker: a version is in use."""

    origin: ModelVersion
    version: str
    text: str
    """The model in words."""


class Waits(NamedTuple):
    """Message of a worker: it answers, but there is no model yet."""


class Refuses(NamedTuple):
    """Message of a worker: a version is not fit for use, or the source cannot be asked, which ``origin`` None says."""

    origin: ModelVersion | None
    reason: str


class Fails(NamedTuple):
    """Message of a worker: it cannot start because of a user's mistake."""

    reason: str


Message = Serves | Waits | Refuses | Fails


class _Reports:
    """Tells the supervisor of changes; messages before :meth:`begin` are kept until then."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._kept: list[Message] | None = []

    def begin(self) -> None:
        kept, self._kept = self._kept or [], None
        for message in kept:
            self.send(message)

    def serves(self, origin: ModelVersion, scorer: Scorer) -> None:
        text = f"{scorer.name} of step {scorer.step}, version {scorer.version}, tasks {', '.join(scorer.tasks)}"
        self.send(Serves(origin, scorer.version, text))

    def refuses(self, origin: ModelVersion, reason: str) -> None:
        self.send(Refuses(origin, reason))

    def source_fails(self, reason: str) -> None:
        self.send(Refuses(None, reason))

    def send(self, message: Message) -> None:
        if self._kept is None or isinstance(message, Fails):
            self._pipe.send(message)
        else:
            self._kept.append(message)


def work(
    parent: int,
    listener: socket.socket,
    pipe: Connection,
    source: VersionSource,
    options: ServerOptions,
    fallback: ModelVersion | None,
) -> None:
    """Serve until SIGTERM; to be called in a process of its own.

    Args:
        parent: process number of the supervisor; the worker ends with it.
        listener: bound socket; it begins to listen when there is something to answer with.
        pipe: to the supervisor, for messages.
        source: place of the versions.
        options: the server's.
        fallback: see :class:`~dlrm_mtl.serve.http.serving.Serving`.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    end_with_parent(parent, options.limits.timeout + GRACE)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # below: every client that speaks no HTTP
    torch.set_num_threads(options.threads)
    reports, metrics = _Reports(pipe), ServerMetrics()
    try:
        serving = Serving(source, reports, metrics, fallback)
        serving.look()
        if serving.model is None and serving.refused is not None:
            raise UserError(serving.refused)
        logs = _logs(options, metrics)
    except UserError as error:
        reports.send(Fails(str(error)))
        raise SystemExit(EXIT_CODE) from None
    listener.listen(BACKLOG)
    if serving.model is None:
        reports.send(Waits())
    reports.begin()
    app = ScoringApp(serving, options.limits, metrics, logs, at_end=partial(_at_end, parent))
    if options.every is not None:
        serving.follow(options.every)
    gc.collect()
    gc.freeze()  # the model lives on: collections need not look at it
    uvicorn.Server(_config(app, options)).run([listener])


def _at_end(parent: int) -> None:
    """Do what the supervisor would, if it is gone."""
    if os.getppid() != parent:
        remove_metrics()


def _config(app: ScoringApp, options: ServerOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        interface="asgi3",
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=options.limits.connections,
        timeout_graceful_shutdown=int(options.limits.timeout + GRACE),
    )


def _logs(options: ServerOptions, metrics: ServerMetrics) -> RequestLogs:
    lost: Callable[[], object] = metrics.unlogged.inc

    def opened(path: Path | None) -> RequestLog | None:
        return None if path is None else RequestLog(path, options.log_size, lost)

    return RequestLogs(
        opened(options.request_log), options.log_share, opened(options.slow_log), options.slow_milliseconds / 1e3
    )
