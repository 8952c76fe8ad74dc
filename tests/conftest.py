"""Shared by all tests."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyarrow import fs

# Tests start several processes on few cores. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does


def pytest_make_parametrize_id(val: object) -> str | None:
    """Content never names a test: packed content holds the time, and processes side by side must agree on names."""
    return "bytes" if isinstance(val, bytes) else None


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


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs the command line in this process; its exit code and what it printed."""

    from dlrm_mtl.cli import main

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dlrm-mtl", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), "".join(capfd.readouterr())

    return run
