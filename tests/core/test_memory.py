"""Freed memory that a process keeps for its next step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dlrm_mtl.core.memory import keep_freed_memory

STEPS = """
import resource
from dlrm_mtl.core.memory import keep_freed_memory

def step():
    first = bytearray(36 << 20)
    second = bytearray(40 << 20)

kept = keep_freed_memory()
for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 3 * (76 << 20) // 4096
"""Pages that three steps use."""


def run(**variables: str) -> tuple[str, int]:
    """Whether memory is kept, and the faults of three steps, in a process with these variables of the environment."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", STEPS]
    found = subprocess.run(command, env=plain | variables, check=True, capture_output=True, text=True).stdout.split()
    return found[0], int(found[1])


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library")
def test_a_step_takes_the_memory_that_the_last_one_freed() -> None:
    kept, faults = run()
    assert kept == "True"
    assert faults < PAGES // 100


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_MMAP_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1000000")],
)
def test_limits_of_the_environment_stay(name: str, value: str) -> None:
    kept, faults = run(**{name: value})
    assert kept == "False"
    assert faults > PAGES // 2


def test_no_c_library_with_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
