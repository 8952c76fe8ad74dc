"""Threads that score requests, with a bounded number of requests that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from dlrm_mtl.serve.http.limits import RefusedRequest, ServerLimits
from dlrm_mtl.serve.http.metrics import ServerMetrics

T = TypeVar("T")


class Gate:
    """Runs work in threads, so that the event loop is free; refuses it when too much waits.

    Args:
        limits: bounds.
        metrics: counted in.
    """

    def __init__(self, limits: ServerLimits, metrics: ServerMetrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._threads = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="score")
        self._inside = 0

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``.

        Raises:
            RefusedRequest: too many wait, or the time limit has passed. Work that has begun goes on, and keeps its thread.
        """
        if self._inside >= self._limits.queue + self._limits.concurrency:
            raise RefusedRequest(503, "the queue of this worker is full; try again in a second.", retry_after=1)
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work)
        self._inside += 1
        self._metrics.waiting.inc()

        def leave(_: Future[Any]) -> None:
            loop.call_soon_threadsafe(self._leave)

        future.add_done_callback(leave)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limits.timeout)
        except asyncio.TimeoutError:
            raise RefusedRequest(
                503,
                f"not scored within {self._limits.timeout:g} seconds; try again, or send fewer rows.",
                retry_after=1,
            ) from None

    def _leave(self) -> None:
        self._inside -= 1
        self._metrics.waiting.dec()

    def close(self) -> None:
        """Wait for what has begun."""
        self._threads.shutdown(cancel_futures=True)


class BodyMemory:
    """Counts the bytes of bodies that are in memory.

    Args:
        limit: bytes that all bodies may take together.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0

    def hold(self, size: int) -> None:
        """Count ``size`` bytes more; raises :class:`RefusedRequest` if there is no room for them."""
        if self._held + size > self._limit:
            raise RefusedRequest(
                503, "requests in memory are too large together; try again in a second.", retry_after=1
            )
        self._held += size

    def release(self, size: int) -> None:
        """Count ``size`` bytes less."""
        self._held -= size
