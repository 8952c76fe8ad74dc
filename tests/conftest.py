"""Shared by all tests."""

import os
from pathlib import Path

import pytest

# Tests start several processes on few cores. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of this repository."""
    return Path(__file__).resolve().parent.parent
