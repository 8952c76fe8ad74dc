"""Metrics of the server for Prometheus, summed over its processes.

Every process writes its numbers to files in the folder that PROMETHEUS_MULTIPROC_DIR names. That variable is read when
prometheus_client is imported, so :func:`shared_metrics` comes first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlrm_mtl.serve.scorer import Scorer

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds of the histograms of times."""


@contextmanager
def shared_metrics() -> Iterator[Path]:
    """A temporary folder through which this process and those that it starts share their metrics."""
    folder = Path(tempfile.mkdtemp(prefix="dlrm-mtl-metrics-"))
    os.environ[VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        remove_metrics()
        del os.environ[VARIABLE]


def remove_metrics() -> None:
    """Remove the folder of :func:`shared_metrics`, of which nobody needs anything any more."""
    shutil.rmtree(os.environ[VARIABLE], ignore_errors=True)


class ServerMetrics:
    """The metrics of all processes; to be made once in a process."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        # A registry of its own: /metrics reads the files of all processes, not this process's objects.
        self._registry = CollectorRegistry()
        self.requests = Counter("dlrm_mtl_requests", "Answered requests.", ["path", "status"], registry=self._registry)
        self.seconds = Histogram(
            "dlrm_mtl_request_seconds",
            "Time from a request's arrival to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.waiting_seconds = Histogram(
            "dlrm_mtl_waiting_seconds",
            "Part of the time in which other requests were scored.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.rows = Counter("dlrm_mtl_rows", "Scored rows or candidates.", ["path"], registry=self._registry)
        self.waiting = Gauge(
            "dlrm_mtl_waiting",
            "Requests that are scored or wait.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self.fields = Counter(
            "dlrm_mtl_fields",
            "Fields and ids that a policy was applied to.",
            ["policy", "feature"],
            registry=self._registry,
        )
        self.workers = Gauge(
            "dlrm_mtl_workers",
            "Workers that serve this version.",
            ["name", "version"],
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self.swaps = Counter("dlrm_mtl_swaps", "Changes of a worker to another version.", registry=self._registry)
        self.refused = Counter(
            "dlrm_mtl_refused_versions", "Versions that a worker refused to serve.", ["name"], registry=self._registry
        )
        self.source_errors = Counter(
            "dlrm_mtl_source_errors", "Looks for a newer version that failed.", registry=self._registry
        )
        self.unlogged = Counter(
            "dlrm_mtl_unlogged_requests", "Requests that could not be written to a log.", registry=self._registry
        )
        self.restarts = Counter("dlrm_mtl_worker_restarts", "Workers that were replaced.", registry=self._registry)

    def text(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all processes in the format that a client accepts, and its media type."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type


class PolicyCounts:
    """Adds what policies were applied to since the last time to the metrics; for one scorer."""

    def __init__(self, scorer: Scorer, metrics: ServerMetrics) -> None:
        self._scorer, self._metrics = scorer, metrics
        self._told: dict[tuple[str, str], int] = {}

    def tell(self) -> None:
        """Add the new ones; not to be called by several threads at a time."""
        for policy, counts in self._scorer.counts.items():
            for feature, count in counts.items():
                new = count - self._told.get((policy, feature), 0)
                if new:
                    self._metrics.fields.labels(policy, feature).inc(new)
                    self._told[policy, feature] = count


def forget_process(pid: int) -> None:
    """Remove what a process that has ended said about the present; its counts stay."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)
