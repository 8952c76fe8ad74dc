"""Commands that compute nothing start quickly: they leave alone what takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dlrm_mtl

SCRIPT = """
import sys
from dlrm_mtl.cli import main
try:
    main()
except SystemExit as left:
    heavy = {"torch", "torchrec", "fbgemm_gpu", "matplotlib"} & set(sys.modules)
    print("exit code", left.code, "imported", sorted(heavy))
"""


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command; at the end of what it printed stands what it has imported."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


def quick(*arguments: str, cwd: Path | None = None) -> str:
    """Output of a command, which imported nothing heavy."""
    done = run(*arguments, cwd=cwd)
    assert done.stdout.endswith("exit code 0 imported []\n"), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("train", "--help"),
        ("compare", "tests/golden/run_format_1"),
        ("data", "describe", "datasets/kuairand_pure"),
    ],
    ids=" ".join,
)
def test_commands_that_compute_nothing_do_not_import_torch(arguments: tuple[str, ...], repository: Path) -> None:
    quick(*arguments, cwd=repository)


def test_a_configuration_is_checked_without_torchrec(repository: Path) -> None:
    done = run("config", "check", "configs/kuairand_mmoe.yaml", cwd=repository)
    assert done.stdout.endswith("exit code 0 imported ['torch']\n"), done.stdout + done.stderr


def test_version() -> None:
    assert quick("--version").splitlines()[0] == f"dlrm-mtl {dlrm_mtl.__version__}"
