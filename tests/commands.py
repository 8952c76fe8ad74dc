"""Running the real command line in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(*arguments: object, processes: int = 1) -> list[str]:
    """The command line of ``dlrm-mtl``, in several processes by torchrun's twin if wanted."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "dlrm_mtl.launcher", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "dlrm_mtl", *(str(argument) for argument in arguments)]


def run(*arguments: object, processes: int = 1, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``dlrm-mtl`` to its end."""
    return subprocess.run(
        command(*arguments, processes=processes), env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=240
    )


def start(*arguments: object, processes: int = 1, log: Path) -> subprocess.Popen[bytes]:
    """Start ``dlrm-mtl`` in a session of its own, with its output in ``log``."""
    with open(log, "wb") as file:
        line = command(*arguments, processes=processes)
        return subprocess.Popen(line, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)


def wait_for_step(metrics: Path, step: int, process: subprocess.Popen[bytes], timeout: float = 120.0) -> None:
    """Wait until ``metrics.jsonl`` has an entry of ``step`` or a later one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        if metrics.is_file() and any(entry["step"] >= step for entry in read_metrics(metrics)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} did not come; exit code {process.poll()}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(path: Path) -> dict[int, dict[str, float]]:
    """Losses by step."""
    entries = [entry for entry in read_metrics(path) if entry["kind"] == "train"]
    return {entry["step"]: {key: value for key, value in entry.items() if key.startswith("loss/")} for entry in entries}


def kill_tree(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process and everything below it, at once."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    tree = [process.pid]
    for pid in tree:
        tree.extend(children.get(pid, []))
    for pid in reversed(tree):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def write_config(path: Path, content: dict[str, object]) -> Path:
    """Write a configuration file."""
    path.write_text(yaml.safe_dump(content))
    return path
