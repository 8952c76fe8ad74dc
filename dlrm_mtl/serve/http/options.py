"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dlrm_mtl.serve.http.limits import ServerLimits


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    """Port; 0 for a free one."""
    workers: int = 1
    """Number of processes that score."""
    threads: int = 1
    """Threads that a worker computes a request with."""
    limits: ServerLimits = field(default_factory=ServerLimits)
    every: float | None = None
    """Seconds between two looks for another version; None to serve what is there at the start."""
    request_log: Path | None = None
    log_share: float = 1.0
    """Share of the requests that is written to the log."""
    slow_log: Path | None = None
    slow_milliseconds: float = 100.0
    """Time from which on a request is written to the slow log."""
    log_size: int = 1 << 30
    """Bytes from which on a log begins another file."""
