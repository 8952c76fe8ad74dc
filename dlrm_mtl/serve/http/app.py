"""The ASGI application of a worker: its paths, and what clients are told."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlrm_mtl.core.memory import size_text
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.serve.http.arrow_bodies import ARROW_TYPE
from dlrm_mtl.serve.http.endpoints import JSON_TYPE, Endpoint, ScoringAnswer, ScoringRequest, describe, rank, score
from dlrm_mtl.serve.http.gate import BodyMemory, Gate
from dlrm_mtl.serve.http.limits import RefusedRequest, ServerLimits
from dlrm_mtl.serve.http.metrics import ServerMetrics
from dlrm_mtl.serve.http.request_log import RequestLog
from dlrm_mtl.serve.http.serving import ServedVersion, Serving
from dlrm_mtl.serve.pages import DamagedPageError

VERSION_HEADER = "Model-Version"
"""Header of every answer once there is a model."""
ENDPOINTS: dict[str, Endpoint] = {"/v1/score": score, "/v1/rank": rank}
_PATHS = {*ENDPOINTS, "/v1/model", "/healthz", "/readyz", "/metrics"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestLogs:
    """Logs of a worker's requests."""

    sample: RequestLog | None = None
    share: float = 0.0
    """Share of the requests that is written to ``sample``."""
    slow: RequestLog | None = None
    slow_seconds: float = 0.0
    """Time from which on a request is written to ``slow``."""

    def close(self) -> None:
        """Write what waits."""
        for log in (self.sample, self.slow):
            if log is not None:
                log.close()


class ScoringApp:
    """What a worker answers.

    Args:
        serving: the model.
        limits: bounds.
        metrics: counted in.
        logs: logs of requests.
        at_end: called after the last request.
    """

    def __init__(
        self,
        serving: Serving,
        limits: ServerLimits,
        metrics: ServerMetrics,
        logs: RequestLogs,
        at_end: Callable[[], object],
    ) -> None:
        self._serving, self._limits, self._metrics, self._logs = serving, limits, metrics, logs
        self._at_end = at_end
        self._gate = Gate(limits, metrics)
        self._bodies = BodyMemory(max(limits.bodies, limits.body))
        routes = [
            *(Route(path, partial(self._score, endpoint), methods=["POST"]) for path, endpoint in ENDPOINTS.items()),
            Route("/v1/model", self._model),
            Route("/healthz", self._healthy),
            Route("/readyz", self._ready),
            Route("/metrics", self._metrics_text),
        ]
        inner = Starlette(
            routes=routes,
            exception_handlers={
                HTTPException: self._no_route,
                RefusedRequest: self._refused,
                DamagedPageError: self._damaged,
                Exception: self._defect,
            },
            lifespan=self._life,
        )
        self.asgi = CountedApp(inner, serving, metrics)
        """The application."""

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._gate.close()
        self._logs.close()
        self._at_end()

    async def _score(self, endpoint: Endpoint, request: Request) -> Response:
        model = self._current()
        arrow = _arrow_body(request)
        body = await self._body(request)
        try:
            arrived = time.perf_counter()
            wanted = ScoringRequest(body, arrow, _arrow_answer(request, arrow))

            def work() -> tuple[ScoringAnswer, float]:
                waited = time.perf_counter() - arrived
                return endpoint(model, wanted, self._limits), waited

            answer, waited = await self._gate.run(work)
        finally:
            self._bodies.release(len(body))
        path = request.url.path
        self._metrics.rows.labels(path).inc(answer.rows)
        self._metrics.waiting_seconds.observe(waited)
        model.counts.tell()
        self._log(path, model, answer, time.perf_counter() - arrived, waited)
        return Response(answer.body, media_type=answer.media_type, headers={VERSION_HEADER: model.scorer.version})

    def _current(self) -> ServedVersion:
        model = self._serving.model
        if model is None:
            raise RefusedRequest(503, "not ready: there is no model yet; try again in a second.", retry_after=1)
        return model

    async def _body(self, request: Request) -> bytes:
        """The body, counted in the memory of all; the caller releases it."""
        if int(request.headers.get("content-length", "0")) > self._limits.body:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            await asyncio.wait_for(self._receive(request, parts), self._limits.timeout)
            return b"".join(parts)
        except BaseException as error:
            self._bodies.release(sum(map(len, parts)))
            if isinstance(error, asyncio.TimeoutError):
                raise RefusedRequest(408, f"body: did not arrive within {self._limits.timeout:g} seconds.") from None
            if isinstance(error, ClientDisconnect):
                raise RefusedRequest(400, "body: the connection ended before it did.") from None
            raise

    async def _receive(self, request: Request, parts: list[bytes]) -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > self._limits.body:
                raise self._too_large()
            self._bodies.hold(len(part))
            parts.append(part)

    def _too_large(self) -> RefusedRequest:
        return RefusedRequest(
            413, f"body: is larger than {size_text(self._limits.body)}; send fewer rows in a request."
        )

    def _log(self, path: str, model: ServedVersion, answer: ScoringAnswer, seconds: float, waited: float) -> None:
        logs, now = self._logs, time.time()

        def entry() -> dict[str, Any]:
            return {
                "time": datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds"),
                "path": path,
                "version": model.scorer.version,
                "milliseconds": round(seconds * 1e3, 3),
                "waited_milliseconds": round(waited * 1e3, 3),
                **answer.entry(),
            }

        if logs.sample is not None and random.random() < logs.share:
            logs.sample.write(entry)
        if logs.slow is not None and seconds >= logs.slow_seconds:
            logs.slow.write(entry)

    async def _model(self, _: Request) -> Response:
        model = self._current()
        return self._reply(200, {"served_from": model.origin.name, **describe(model.scorer)})

    async def _healthy(self, _: Request) -> Response:
        return self._reply(200, {"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        self._current()
        return self._reply(200, {"status": "ready"})

    async def _metrics_text(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        text, media_type = await asyncio.get_running_loop().run_in_executor(None, self._metrics.text, accept)
        return Response(text, media_type=media_type)

    def _reply(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
        """An answer in JSON with the version of the model, if there is one."""
        model = self._serving.model
        version = {} if model is None else {"version": model.scorer.version}
        return Response(json.dumps({**content, **version}), status, headers, JSON_TYPE)

    async def _refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedRequest)
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        if error.status == 408:  # the rest of the body may still come
            headers["Connection"] = "close"
        return self._reply(error.status, {"error": error.sentence}, headers)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, headers = request.url.path[:60], dict(error.headers or {})
        sentence = f"there is no path {path!r} here; {suggest(path, _PATHS)}."
        if error.status_code == 405:
            methods = sorted(headers.get("Allow", "").split(", "))
            sentence = f"{path} does not take {request.method}; use {' or '.join(methods)}."
        return self._reply(error.status_code, {"error": sentence}, headers)

    async def _damaged(self, _: Request, error: Exception) -> Response:
        """The answer where a page of the tables does not have its checksum; the others are good, and go on."""
        logger.error("%s", error)
        return self._reply(500, {"error": "a page of the model's tables that this request needs is damaged."})

    async def _defect(self, _: Request, __: Exception) -> Response:
        """The answer for a defect of the server, whose traceback goes to the server's own output."""
        return self._reply(500, {"error": "the server has a defect here; its output has the details."})


class CountedApp:
    """Counts the requests of an application, and adds the version of the model to its answers.

    Args:
        app: ASGI application.
        serving: the model.
        metrics: counted in.
    """

    def __init__(self, app: ASGIApp, serving: Serving, metrics: ServerMetrics) -> None:
        self._app, self._serving, self._metrics = app, serving, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, path = time.perf_counter(), scope["path"] if scope["path"] in _PATHS else "other"
        status = "none"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                self._add_version(message)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _add_version(self, message: Message) -> None:
        model, name = self._serving.model, VERSION_HEADER.lower().encode()
        if model is not None and all(key != name for key, _ in message["headers"]):
            message["headers"] = [*message["headers"], (name, model.scorer.version.encode())]


def _arrow_body(request: Request) -> bool:
    """True for an Arrow stream, False for JSON; raises :class:`RefusedRequest` for all else."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedRequest(415, f"Content-Encoding: {encoding[:60]!r} is not understood; send the body as it is.")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (JSON_TYPE, ARROW_TYPE):
        raise RefusedRequest(
            415,
            f"Content-Type: {media_type[:60]!r} is not understood; send {JSON_TYPE} or {ARROW_TYPE}, and say which.",
        )
    return media_type == ARROW_TYPE


def _arrow_answer(request: Request, arrow_body: bool) -> bool:
    """True if the answer is to be an Arrow stream: as `Accept` says, or else as the body."""
    accept = request.headers.get("accept", "")
    return ARROW_TYPE in accept or (arrow_body and JSON_TYPE not in accept)
