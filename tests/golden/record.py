"""Writes the golden files anew: ``python -m tests.golden.record [NAME...]``.

Only for a change that is meant to change results; say so in its commit. Arithmetic is held to what every x86-64 processor
gives alike: no vector instructions in PyTorch, the compatible mode of MKL, one thread.
"""

from __future__ import annotations

import json
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
    done = _run("train", config, "--output", folder, processes=processes)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = commands.losses(folder / "metrics.jsonl")
    results = json.loads((folder / "results.json").read_text())
    return {"losses": {str(step): values for step, values in losses.items()}, "test": results["test"]}


def resume(folder: Path) -> subprocess.CompletedProcess[str]:
    """Go on with a run by its own configuration."""
    return _run("train", folder / "config.yaml", "--output", folder, "--resume", processes=1)


def _run(*arguments: object, processes: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        commands.command(*arguments, processes=processes),
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )


def processes_of(name: str) -> int:
    """The multitask model is trained on two processes, so that the sharded path is held as well."""
    return 2 if name == "mmoe" else 1


def main() -> None:
    """Record the losses named on the command line, or all."""
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found = train(HERE / f"{name}.yaml", Path(folder) / "run", processes_of(name))
        (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
