"""Rewrites the golden files: ``python -m tests.golden.record [NAME...]``.

Only for a change that is meant to change results; say so in its commit. Arithmetic is held to what every x86-64 processor
gives alike: no vector instructions in PyTorch, the compatible mode of MKL, one thread.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import commands

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = {
    **commands.ENVIRONMENT,
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
}
NAMES = ("mmoe", "flattened_balanced", "unbounded")
OLD_RUN = HERE / "run_format_1"
"""A run folder as version 0.1.0 wrote it, checkpoint format 1."""


RECORDED_ON = "x86_64"
"""The kind of processor on which all this was recorded: on others the last bits may differ."""


def machine() -> str:
    """The kind of this processor."""
    return platform.machine()


def train(config: Path, folder: Path, processes: int) -> dict[str, Any]:
    """Train for 20 steps; losses of every step, as metrics.jsonl has them, and the metrics on the test split."""
    done = commands.run("train", config, "--output", folder, processes=processes, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = commands.losses(folder / "metrics.jsonl")
    results = json.loads((folder / "results.json").read_text())
    return {"losses": {str(step): values for step, values in losses.items()}, "test": results["test"]}


def resume(folder: Path) -> None:
    """Go on with a run by its own configuration."""
    done = commands.run("train", folder / "config.yaml", "--output", folder, "--resume", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def repeat(folder: Path) -> None:
    """Train all runs, and continue the old one from its first checkpoint, below ``folder``; in held arithmetic."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden.record", "--repeat", folder],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def processes_of(name: str) -> int:
    """The multitask model is trained on two processes, so that the sharded path is held as well."""
    return 2 if name == "mmoe" else 1


def main() -> None:
    """Record the losses named on the command line, or all; see also :func:`repeat`."""
    if sys.argv[1:2] == ["--repeat"]:
        folder = Path(sys.argv[2])
        for name in NAMES:
            found = train(HERE / f"{name}.yaml", folder / name, processes_of(name))
            (folder / f"{name}.json").write_text(json.dumps(found))
        resume(folder / "old")
        return
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as temporary:
            found = train(HERE / f"{name}.yaml", Path(temporary) / "run", processes_of(name))
        (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if not ENVIRONMENT.items() <= os.environ.items():  # PyTorch and MKL look at it when they are loaded
        os.execve(sys.executable, [sys.executable, "-m", "tests.golden.record", *sys.argv[1:]], ENVIRONMENT)
    main()
