"""Bounds of what a worker takes, and the answer to a request that is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of one worker."""

    body: int = 16 << 20
    """Bytes of a request's body."""
    rows: int = 10_000
    """Rows or candidates of a request."""
    copies: int = 2_000_000
    """Values of the context of a request, times its candidates."""
    queue: int = 64
    """Requests that wait while others are scored; the next one is answered with 503."""
    concurrency: int = 1
    """Requests that are scored at the same time."""
    timeout: float = 10.0
    """Seconds for the arrival of a request's body, and again for its scores."""
    bodies: int = 256 << 20
    """Bytes of all bodies that are held in memory at a time, if one body of the largest size is not more."""
    connections: int = 1000
    """Open connections."""


class RefusedRequest(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        sentence: content of the answer.
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after
