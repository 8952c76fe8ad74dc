"""File systems: this machine, or a store that Arrow can open by a URI."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.uri_secrets import refuse_secrets

GOOGLE_PATIENCE = "15"
"""Seconds for which Google's client retries a request, such as without credentials; Arrow's default is 15 minutes."""
_GOOGLE = re.compile(
    r"(?:\[Errno \d+\] )?google::cloud::Status\(\w+: "
    r"(?:(?:Retry policy exhausted|Permanent error)[^:]*, with a last message of )?"
    r"(.*?)(?: error_info=|\)(?:\. Detail|$))"
)


def locate(path: str | Path) -> tuple[fs.FileSystem, str]:
    """Split a local path or a URI (s3://, gs://, hdfs://, file://) into a file system and a path in it.

    Raises:
        UserError: the URI cannot be used, or holds a secret.
    """
    if "://" not in str(path):
        # Not memory-mapped, which would be no faster: a process that reads a mapped file is killed if the file is
        # truncated.
        return fs.LocalFileSystem(), str(path).rstrip("/") or "/"
    refuse_secrets(str(path))
    try:
        filesystem, inside = fs.FileSystem.from_uri(_google(str(path)))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: is no place that can be read ({first_line(error)}); name a local path or a URI."
        ) from None
    return filesystem, inside.rstrip("/")


def _google(uri: str) -> str:
    """``uri`` with options that Arrow omits for Google's store: STORAGE_EMULATOR_HOST, and the time limit of retries."""
    parts = urlsplit(uri)
    if parts.scheme not in ("gs", "gcs"):
        return uri
    options, server = dict(parse_qsl(parts.query)), os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    options.setdefault("retry_limit_seconds", GOOGLE_PATIENCE)
    bucket = parts.netloc
    if server and "endpoint_override" not in options:
        scheme, _, host = server.rpartition("://")
        options |= {"scheme": scheme or "http", "endpoint_override": host}
        bucket = f"anonymous@{bucket.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=bucket, query=urlencode(options)))


def is_local(filesystem: fs.FileSystem) -> bool:
    """Return True if files are on this machine."""
    return isinstance(filesystem, fs.LocalFileSystem)


def first_line(error: Exception) -> str:
    """Message of an Arrow error, without its details."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    found = _GOOGLE.match(line)
    return (found[1] if found else line).rstrip(".")
