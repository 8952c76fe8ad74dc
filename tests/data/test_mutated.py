"""Damaged Parquet files give rows or one sentence: never another exception, a hang or a crash."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest


def outcomes(first: int, last: int) -> list[dict[str, Any]]:
    """Read mutated files number ``first`` to ``last`` in a process of its own, which a sentence of the last resort ends."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.mutated", str(first), str(last)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    found = [entry for entry in entries if "outcome" in entry]
    if done.returncode == 0:
        return found
    case = entries[-1]["case"]
    assert done.returncode == 2, f"exit code {done.returncode} at {case}: {done.stderr[-2000:]}"
    assert re.fullmatch(r"error: .*part-001\.parquet: .* contradicts itself.*\.", done.stderr.splitlines()[-1])
    found.append({"case": case, "outcome": "sentence"})
    return found + (outcomes(case + 1, last) if case + 1 < last else [])


def check(found: list[dict[str, Any]], count: int) -> Counter[str]:
    assert len(found) == count
    bad = [entry for entry in found if not re.fullmatch(r"sentence|\d+ rows", entry["outcome"])]
    assert not bad, bad[:5]
    return Counter("rows" if entry["outcome"].endswith(" rows") else entry["outcome"] for entry in found)


def test_damaged_files() -> None:
    counts = check(outcomes(0, 120), 120)
    assert counts["sentence"] > 20
    assert counts["rows"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_ten_thousand_damaged_files(first: int) -> None:
    check(outcomes(first, first + 500), 500)
