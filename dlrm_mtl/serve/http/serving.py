"""The model that a worker serves, and its change to a newer version while requests go on.

A request takes :attr:`Serving.model` once and keeps it to its end, so no request sees two versions. The new version is loaded
and checked beside the old one; then one reference changes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.http.metrics import PolicyCounts, ServerMetrics
from dlrm_mtl.serve.http.source import ModelVersion, VersionSource
from dlrm_mtl.serve.scorer import Scorer

LOAD_NICENESS = 10
"""Niceness of the thread that loads a version, so that it takes little time from requests."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedVersion:
    """A version of the model that is in use."""

    origin: ModelVersion
    scorer: Scorer
    counts: PolicyCounts
    since: float
    """Time of the change to it, in seconds since 1970."""


class ServingEvents(Protocol):
    """Listener to the changes of a worker."""

    def serves(self, origin: ModelVersion, scorer: Scorer) -> None:
        """A version is in use from now on."""
        ...

    def refuses(self, origin: ModelVersion, reason: str) -> None:
        """A version is not fit for use."""
        ...

    def source_fails(self, reason: str) -> None:
        """The source could not be asked; called again only when the reason changes."""
        ...


class Serving:
    """The model that is in use.

    Args:
        source: place of the versions.
        events: told of all changes.
        metrics: counted in.
        fallback: version to serve where none of the source's can be, such as the one that other workers serve.
    """

    def __init__(
        self,
        source: VersionSource,
        events: ServingEvents,
        metrics: ServerMetrics,
        fallback: ModelVersion | None = None,
    ) -> None:
        self._source, self._events, self._metrics, self._fallback = source, events, metrics, fallback
        self._refused: set[str] = set()
        self._failure = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.model: ServedVersion | None = None
        """The version in use; None until the first one is there."""
        self.refused: str | None = None
        """Reason of the first version that was refused at the last look; None if none was."""

    def look(self) -> None:
        """Go over to the first version of the source that is fit for use, unless it is in use already.

        Raises:
            UserError: the source cannot be asked.
        """
        candidates = [*self._source.versions()]
        if self.model is None and self._fallback is not None:
            candidates.append(self._fallback)
        self._refused &= {version.key for version in candidates}
        self.refused = None
        for version in candidates:
            if self.model is not None and version.key == self.model.origin.key:
                return
            if version.key not in self._refused and self._load(version):
                return

    def follow(self, seconds: float) -> None:
        """Look for another version again and again, in a thread of its own.

        Args:
            seconds: time between two looks.
        """
        self._thread = threading.Thread(target=self._follow, args=(seconds,), name="follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; it is not waited for, as it may be loading."""
        self._stop.set()

    def _follow(self, seconds: float) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOAD_NICENESS)  # of this thread, on Linux
        while not self._stop.wait(seconds):
            try:
                self.look()
                self._failure = ""
            except UserError as error:
                self._metrics.source_errors.inc()
                if str(error) != self._failure:
                    self._failure = str(error)
                    self._events.source_fails(str(error))

    def _load(self, version: ModelVersion) -> bool:
        old = self.model
        try:
            scorer = version.load(None if old is None else old.scorer)
        except Exception as error:  # of any kind: the version in use goes on
            if not isinstance(error, UserError):
                logger.exception("%s: a defect shows while it is loaded", version.name)
            self._refused.add(version.key)
            self._metrics.refused.labels(version.name).inc()
            self._events.refuses(version, str(error))
            self.refused = self.refused or str(error)
            return False
        self.model = ServedVersion(version, scorer, PolicyCounts(scorer, self._metrics), time.time())
        if old is not None:
            self._metrics.swaps.inc()
            self._metrics.workers.labels(old.origin.name, old.scorer.version).set(0)
        self._metrics.workers.labels(version.name, scorer.version).set(1)
        self._events.serves(version, scorer)
        return True
