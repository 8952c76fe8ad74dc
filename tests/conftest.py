"""Shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyarrow import fs

# Tests start several processes on few cores. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of this repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> "Iterator[fs.S3FileSystem]":
    """A client of an object store with an empty bucket, ``bucket``; commands that a test runs find it, too."""
    from tests import commands, s3

    with s3.object_store() as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
            monkeypatch.setitem(commands.ENVIRONMENT, key, value)
        yield s3.client()
